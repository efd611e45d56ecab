"""The worker's HTTP server: one native thread and a few connections, whatever its clients do."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping

from forwarder.telemetry.exchange import Route, is_whole, respond
from forwarder.telemetry.native import start_native, unpatched

#: Connections at a time. One more takes the place of the oldest.
CONNECTIONS_MAX = 32
#: Seconds for a request to arrive and its answer to leave.
EXCHANGE_S = 5.0
#: Connections that the kernel keeps until they are accepted.
BACKLOG = 128
CHUNK_BYTES = 16 * 1024
#: Seconds until a connection is tried again that could not be accepted.
SHORTAGE_S = 0.05


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket of the system's own. Raises OSError. ``::`` takes IPv4 as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener: socket.socket = unpatched("socket", "socket")(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class Connection:
    """One request on its way in, or its answer on its way out."""

    def __init__(self, sock: socket.socket, *, until_s: float) -> None:
        self.sock = sock
        self.until_s = until_s
        self._head = b""
        self._left: memoryview | None = None

    @property
    def waits_for(self) -> int:
        """Return the event of ``poll`` that it can go on with."""
        return select.POLLIN if self._left is None else select.POLLOUT

    def go_on(self, routes: Mapping[str, Route]) -> bool:
        """Read or write what can be without blocking; return whether it is over. Raises OSError."""
        try:
            if self._left is None and not self._read(routes):
                return False
            while self._left:
                self._left = self._left[self.sock.send(self._left) :]
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close it, also where a child of a fork has inherited it."""
        with contextlib.suppress(OSError):  # the client was faster
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _read(self, routes: Mapping[str, Route]) -> bool:
        """Return whether there is an answer to write. Raises OSError when the client has left."""
        received = self.sock.recv(CHUNK_BYTES)
        if not received:
            raise ConnectionAbortedError
        self._head += received
        if is_whole(self._head):
            self._left = memoryview(respond(self._head, routes))
        return self._left is not None


class HttpServer:
    """Serves ``routes`` (path to what answers it), which may be replaced at any time.

    Routes are called in the server's own thread, one at a time: they must not block.
    Nothing here takes a lock or writes a log line: the thread answers while the
    rest of the process is stuck. Children of a fork close what they have inherited.
    """

    def __init__(
        self,
        *,
        listener: socket.socket,
        routes: Mapping[str, Route],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routes = routes
        self._listener = listener
        self._monotonic = monotonic
        self._connections: dict[int, Connection] = {}
        self._sleep = unpatched("time", "sleep")
        self._poll: select.poll = unpatched("select", "poll")()

    def __repr__(self) -> str:
        return f"<HttpServer connections={len(self._connections)}>"

    def start(self) -> None:
        """Serve until ``stop``."""
        os.register_at_fork(after_in_child=self._forget)
        start_native(self._serve)

    def stop(self) -> None:
        """Serve no more; may be called again. Does not wait for the thread, which closes the socket."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        listener = self._listener.fileno()
        self._poll.register(listener, select.POLLIN)
        while True:
            for number, event in self._poll.poll(self._wait_ms()):
                if number != listener:
                    self._go_on(number)
                elif event & ~select.POLLIN:  # shut down
                    self._forget()
                    return
                else:
                    self._accept()
            self._drop_late()

    def _wait_ms(self) -> float | None:
        if not self._connections:
            return None
        next_s = min(connection.until_s for connection in self._connections.values())
        return max(0.0, (next_s - self._monotonic()) * 1000) + 1

    def _accept(self) -> None:
        try:
            # Not accept(): under gevent's patch it returns a socket of gevent's. Private; a test pins it.
            number, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:  # the client has left, or there is no descriptor to be had: don't spin
            self._sleep(SHORTAGE_S)
            return
        sock: socket.socket = unpatched("socket", "socket")(fileno=number)
        sock.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._close(next(iter(self._connections)))
        self._connections[number] = Connection(sock, until_s=self._monotonic() + EXCHANGE_S)
        self._go_on(number)

    def _go_on(self, number: int) -> None:
        connection = self._connections.get(number)
        if connection is None:
            return  # closed for a newer one, in the same round
        try:
            over = connection.go_on(self.routes)
        except OSError:
            over = True
        if over:
            self._close(number)
        else:
            self._poll.register(number, connection.waits_for)

    def _drop_late(self) -> None:
        now_s = self._monotonic()
        for number in [
            number for number, connection in self._connections.items() if connection.until_s <= now_s
        ]:
            self._close(number)

    def _close(self, number: int) -> None:
        with contextlib.suppress(KeyError):  # it was answered at once
            self._poll.unregister(number)
        self._connections.pop(number).close()

    def _forget(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._connections.clear()
        self._listener.close()
