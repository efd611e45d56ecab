"""HTTP client of the inference server: kept-alive connections, three deadlines."""

from __future__ import annotations

import re
import socket
import ssl
import string
import time
from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from forwarder.forwarding.errors import Expired, ForwarderError, InferenceTimeout, InferenceUnreachable
from forwarder.forwarding.ports import Answer, Spool, StagedBody
from forwarder.inference.answers import AnswerReader
from forwarder.inference.connecting import connect
from forwarder.inference.deadline import Deadline, DeadlineSocket

READ_BYTES = 64 * 1024
#: A body up to this size is copied behind the head, to leave with it in one call of the system.
COPIED_BYTES_MAX = 64 * 1024
#: One header of visible text: its name and value as in RFC 9110, section 5.
FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\x20-\x7e\t]*")


class InferenceClient:
    """Sends JSON bodies to one URL, at most one request per connection at a time.

    Safe to share between greenlets or threads: a connection belongs to one
    request from start to end. ``idle_max`` bounds the connections kept open
    between requests; size it to the concurrency. Timeouts are in seconds:
    connecting, between two reads, and the whole call. ``hold`` is told how many
    bytes of the response the calling greenlet has, as they come, and may block for
    as many seconds as it is told, and raise TimeoutError then. That puts the call's
    end off: the answer is there, and paid for.
    """

    def __init__(
        self,
        *,
        url: str,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
        response_bytes_max: int,
        idle_max: int,
        hold: Callable[[int, float], object] = lambda number, within_s: None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        default_port = 443 if self._tls else 80
        self._host = parts.hostname or ""
        self._port = parts.port or default_port
        host = f"[{self._host}]" if ":" in self._host else self._host
        if self._port != default_port:
            host += f":{self._port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._head = (
            f"POST {quote(target, safe=string.punctuation)} HTTP/1.1\r\nHost: ".encode("ascii")
            + host.encode("idna")
            + b"\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\n"
        )
        self._connect_timeout_s = min(connect_timeout_s, total_timeout_s)
        self._read_timeout_s = read_timeout_s
        self._total_timeout_s = total_timeout_s
        self._response_bytes_max = response_bytes_max
        self._idle_max = idle_max
        self._hold = hold
        self._monotonic = monotonic
        self._sleep = sleep
        self._idle: deque[DeadlineSocket] = deque()

    def __repr__(self) -> str:
        return f"<InferenceClient {self._host}:{self._port} idle={len(self._idle)}>"

    def predict(
        self,
        body: bytes | StagedBody,
        *,
        headers: Mapping[str, str],
        within_s: float | None = None,
        spool: Spool | None = None,
    ) -> Answer:
        """POST one JSON body and return the whole answer, whatever its status.

        With a ``spool``, an answer with a status below 400 that is too large for
        memory is staged there, bounded by it alone.

        Blocks for at most the total deadline, put off by what ``hold`` waits, or
        ``within_s``, after the connect timeout for each of the host's addresses and
        the look-up of a name. Raises InferenceUnreachable when there is no connection
        in time or it breaks, InferenceTimeout past a deadline,
        Expired past ``within_s``, ResponseTooLarge past the bound, InvalidResponse
        for what is not HTTP, ValueError for a header that HTTP can't hold. The
        connection is closed whenever the call does not end with an answer, a
        killed greenlet included: that is how most servers learn that nobody waits
        any more.
        """
        started = self._monotonic()
        deadline = Deadline(total_s=self._total_timeout_s, within_s=within_s, monotonic=self._monotonic)
        body_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
        head = self._request_head(headers, body_bytes=body_bytes)
        reader = AnswerReader(body_bytes_max=self._response_bytes_max, spool=spool)
        if spool is not None:
            spool.begin()
        connection: DeadlineSocket | None = None
        reusable = False
        try:
            connection = self._idle_connection() or self._connect(deadline)
            connection.arm(deadline=deadline, silence_s=self._read_timeout_s)
            sent = self._send(connection, head, body)
            while not reader.whole:
                if data := connection.recv(READ_BYTES):
                    reader.feed(data)
                    if spool is not None:
                        reader.spill(within_s=deadline.left_s)
                    self._wait_for_memory(reader.received_bytes, deadline)
                else:
                    reader.end()
            reusable = sent and reader.reusable
        except TimeoutError:
            if connection is None or not connection.has_sent:  # a look-up may take any time
                raise InferenceUnreachable("no connection to the inference server in time") from None
            raise self._too_late(deadline) from None
        except OSError as error:
            raise InferenceUnreachable(f"connection to the inference server broke: {_name(error)}") from None
        finally:
            reader.close()
            if connection is not None:
                self._give_back(connection, reusable=reusable)
        return Answer(
            status=reader.status,
            body=reader.body,
            headers=reader.headers,
            elapsed_s=self._monotonic() - started,
            staged=spool.finish() if spool is not None and reader.spilled_bytes else None,
        )

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _idle_connection(self) -> DeadlineSocket | None:
        """Return an idle connection that is still open, newest first."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale():
                return connection
            connection.close()
        return None

    def _connect(self, deadline: Deadline) -> DeadlineSocket:
        timeout_s = min(self._connect_timeout_s, max(0.001, deadline.left_s))
        try:
            sock = connect(self._host, self._port, timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
        except OSError as error:  # timeouts and name errors included
            raise InferenceUnreachable(f"no connection to the inference server: {_name(error)}") from None
        return DeadlineSocket(sock)

    def _give_back(self, connection: DeadlineSocket, *, reusable: bool) -> None:
        if reusable and len(self._idle) < self._idle_max:
            self._idle.append(connection)
        else:
            connection.close()

    def _request_head(self, headers: Mapping[str, str], *, body_bytes: int) -> bytes:
        fields = [f"{name}: {value}" for name, value in headers.items()]
        if not all(map(FIELD.fullmatch, fields)):
            raise ValueError("a header that HTTP can't hold")
        own = "".join(f"{field}\r\n" for field in fields).encode("ascii")
        return b"%b%bContent-Length: %d\r\n\r\n" % (self._head, own, body_bytes)

    def _send(self, connection: DeadlineSocket, head: bytes, body: bytes | StagedBody) -> bool:
        """Send the request; return False if the server closed before it had read all of it."""
        try:
            if not isinstance(body, bytes):
                connection.sendall(head)
                self._send_file(connection, body)
            elif len(body) <= COPIED_BYTES_MAX:
                connection.sendall(head + body)
            else:
                connection.sendall(head)
                connection.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it may have answered "busy" or "too large" first
        return True

    def _send_file(self, connection: DeadlineSocket, body: StagedBody) -> None:
        piece = memoryview(bytearray(READ_BYTES))
        left = body.size_bytes
        with body.path.open("rb", buffering=0) as file:
            while left:
                number = file.readinto(piece[: min(left, READ_BYTES)])
                if not number:
                    raise RuntimeError("the staged file is shorter than it was")
                connection.sendall(piece[:number])
                left -= number
                # A server and a page cache that are always ready would never let another greenlet run.
                self._sleep(0)

    def _wait_for_memory(self, held_bytes: int, deadline: Deadline) -> None:
        try:
            deadline.put_off(lambda within_s: self._hold(held_bytes, within_s))
        except TimeoutError:
            if deadline.left_s > 0:
                raise InferenceTimeout("no memory for the rest of the answer") from None
            raise

    def _too_late(self, deadline: Deadline) -> ForwarderError:
        if deadline.left_s > 0:
            return InferenceTimeout(f"the inference server was silent for {self._read_timeout_s:g} s")
        if deadline.is_the_tasks_end:
            return Expired("the task expired while it ran")
        return InferenceTimeout(f"no complete answer within {self._total_timeout_s:g} s")


def _name(error: OSError) -> str:
    """Return the class and errno name: an OSError's text can hold host names, never payload."""
    return f"{type(error).__name__}" + (f" ({error.strerror})" if error.strerror else "")
