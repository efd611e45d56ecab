"""A TCP proxy on loopback that breaks connections on demand, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from forwarder.testing.processes import LOOPBACK

CHUNK_BYTES = 65_536
CALL_TIMEOUT_S = 10.0


class Proxy:
    """Passes connections on to a port of 127.0.0.1, until it is told otherwise.

    Used as a context manager. Its methods may be called from any thread; each
    blocks until it has taken effect, which is milliseconds. ``heal`` ends
    every fault.
    """

    def __init__(self, *, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self._delay_s = 0.0
        self._flowing = asyncio.Event()
        self._links: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        # Bound and never listening: the port stays ours while new connections are refused.
        self._reservation = _bound_socket(0)

    def __repr__(self) -> str:
        return f"<Proxy {self.port} to {self.target_port}>"

    def __enter__(self) -> Self:
        self.port = self._reservation.getsockname()[1]
        self._thread.start()
        self.heal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()

    @property
    def connections(self) -> int:
        """Return the number of open connections, frozen ones included."""
        return len(self._links)

    def through(self, url: str) -> str:
        """Return the target's URL with this proxy's port in place of the target's."""
        return url.replace(f"{LOOPBACK}:{self.target_port}", f"{LOOPBACK}:{self.port}")

    def cut(self) -> None:
        """Close every connection on both sides, and refuse new ones."""
        self._call(self._cut())

    def freeze(self) -> None:
        """Pass nothing more, not even that a side has closed; connections stay open, new ones too.

        What was sent meanwhile arrives after ``heal``, as after a silent network.
        """
        self._call(self._freeze())

    def delay(self, seconds: float) -> None:
        """Hold whatever passes for so long, on its way there and on its way back."""
        self._delay_s = seconds

    def heal(self) -> None:
        """Accept and pass everything on again, at once."""
        self._call(self._heal())

    def _call(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(CALL_TIMEOUT_S)

    async def _freeze(self) -> None:
        self._flowing.clear()

    async def _heal(self) -> None:
        self._delay_s = 0.0
        self._flowing.set()
        if self._listener is None:
            self._listener = _bound_socket(self.port)
            self._listener.listen()
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _cut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next round

    def _accept(self, listener: socket.socket) -> None:
        # By hand: asyncio's own server has connections that it forgets to close when it is closed.
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the client did not wait
        link = self._loop.create_task(self._link(client))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: client.close())  # for a link that was cut before it began

    async def _link(self, client: socket.socket) -> None:
        writers = []
        try:
            reader, writer = await asyncio.open_connection(sock=client)
            writers.append(writer)
            target_reader, target_writer = await asyncio.open_connection(LOOPBACK, self.target_port)
            writers.append(target_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, target_writer))
                pumps.create_task(self._pump(target_reader, writer))
        except* OSError:
            pass  # a side is gone: so is the connection
        finally:
            for end in writers:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one direction on until its end; a reset counts as one, so that it waits its turn as well."""
        writer.transport.set_write_buffer_limits(high=0)  # drained is sent: nothing is lost at the end
        data = b"-"
        while data:
            try:
                data = await reader.read(CHUNK_BYTES)
            except ConnectionError:
                data = b""
            await asyncio.sleep(self._delay_s)
            await self._flowing.wait()
            if data:
                writer.write(data)
                await writer.drain()
        writer.write_eof()


def _bound_socket(port: int) -> socket.socket:
    """Return a socket on the port of 127.0.0.1, which others of ours may be bound to as well."""
    bound = socket.socket()
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((LOOPBACK, port))
    return bound
