"""HTTP client of the inference server: kept-alive connections, three deadlines."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from forwarder.forwarding.errors import (
    Expired,
    ForwarderError,
    InferenceTimeout,
    InferenceUnreachable,
    InvalidResponse,
    ResponseTooLarge,
)
from forwarder.forwarding.ports import Answer
from forwarder.inference.deadline import DeadlineSocket

CHUNK_BYTES = 256 * 1024


class InferenceClient:
    """Sends JSON bodies to one URL, at most one request per connection at a time.

    Safe to share between greenlets or threads: a connection belongs to one
    request from start to end. ``idle_max`` bounds the connections kept open
    between requests; size it to the concurrency. Timeouts are in seconds:
    connecting, between two reads, and the whole call.
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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connect_timeout_s = min(connect_timeout_s, total_timeout_s)
        self._read_timeout_s = read_timeout_s
        self._total_timeout_s = total_timeout_s
        self._response_bytes_max = response_bytes_max
        self._idle_max = idle_max
        self._monotonic = monotonic
        self._idle: deque[http.client.HTTPConnection] = deque()

    def __repr__(self) -> str:
        return f"<InferenceClient {self._host}:{self._port} idle={len(self._idle)}>"

    def predict(self, body: bytes, *, headers: Mapping[str, str], within_s: float | None = None) -> Answer:
        """POST one JSON body and return the whole answer, whatever its status.

        Blocks for at most the total deadline or ``within_s``, after the connect
        timeout for each of the host's addresses. Raises InferenceUnreachable when
        there is no connection or it breaks, InferenceTimeout past a deadline,
        Expired past ``within_s``, ResponseTooLarge past the bound, InvalidResponse
        for what is not HTTP. The connection is closed whenever the call does not
        end with an answer, a killed greenlet included: that is how most servers
        learn that nobody waits any more.
        """
        started = self._monotonic()
        deadline = self._deadline(started, within_s)
        connection = self._take()
        response = None
        reusable = False
        try:
            with self._translated(deadline):
                sent = self._send(connection, body, headers, deadline=deadline)
                response = connection.getresponse()
                if response.status < 200:
                    # http.client takes an interim answer for the last one; the real one
                    # would be read as the answer to the next request.
                    raise InvalidResponse(f"the inference server sent an interim answer ({response.status})")
                content = self._read(response)
            reusable = sent and not response.will_close
        finally:
            if reusable and len(self._idle) < self._idle_max:
                self._idle.append(connection)
            else:
                if response is not None:
                    response.close()
                connection.close()
        return Answer(
            status=response.status,
            body=content,
            headers={name.lower(): value for name, value in response.getheaders()},
            elapsed_s=self._monotonic() - started,
        )

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> http.client.HTTPConnection:
        """Return an idle connection that is still open, newest first, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not cast(DeadlineSocket, connection.sock).stale():
                return connection
            connection.close()
        if self._tls is None:
            return _Connection(self._host, self._port, self._monotonic)
        return _TLSConnection(self._host, self._port, self._monotonic, context=self._tls)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        body: bytes,
        headers: Mapping[str, str],
        *,
        deadline: _Deadline,
    ) -> bool:
        """Send the request; return False if the server closed before it had read all of it."""
        if connection.sock is None:
            connection.timeout = min(self._connect_timeout_s, max(0.001, deadline.at - self._monotonic()))
            _connect(connection)
        sock = cast(DeadlineSocket, connection.sock)
        sock.arm(deadline=deadline.at, silence_s=self._read_timeout_s)
        try:
            connection.request("POST", self._target, body, {"Content-Type": "application/json", **headers})
        except (BrokenPipeError, ConnectionResetError):
            return False  # it may have answered "busy" or "too large" first
        return True

    @contextlib.contextmanager
    def _translated(self, deadline: _Deadline) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            if self._monotonic() >= deadline.at:
                raise deadline.kind(deadline.text) from None
            raise InferenceTimeout(
                f"the inference server was silent for {self._read_timeout_s:g} s"
            ) from None
        except http.client.RemoteDisconnected:
            raise InferenceUnreachable(
                "the inference server closed the connection before answering"
            ) from None
        except http.client.IncompleteRead:
            raise InferenceUnreachable("the inference server's answer broke off") from None
        except (http.client.HTTPException, ValueError):
            raise InvalidResponse("the inference server's answer is not HTTP") from None
        except OSError as error:
            raise InferenceUnreachable(f"connection to the inference server broke: {_name(error)}") from None

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        limit = self._response_bytes_max
        if response.length is not None and response.length > limit:
            raise ResponseTooLarge(
                f"the inference server's answer of {response.length} bytes passes the limit of {limit}"
            )
        chunks: list[bytes] = []
        total = 0
        while chunk := response.read(CHUNK_BYTES):
            total += len(chunk)
            if total > limit:
                raise ResponseTooLarge(f"the inference server's answer passes the limit of {limit} bytes")
            chunks.append(chunk)
        if response.length:  # http.client reports a short body only when it is read in one piece
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(chunks)

    def _deadline(self, started: float, within_s: float | None) -> _Deadline:
        if within_s is not None and within_s < self._total_timeout_s:
            return _Deadline(started + within_s, Expired, "the task expired while it ran")
        text = f"no complete answer within {self._total_timeout_s:g} s"
        return _Deadline(started + self._total_timeout_s, InferenceTimeout, text)


@dataclass(frozen=True, slots=True)
class _Deadline:
    """When a call ends, on the monotonic clock, and with which error.

    Not the error itself: once raised it refers to the frames that refer to it,
    and that cycle would keep the body alive until the garbage collector comes by.
    """

    at: float
    kind: type[ForwarderError]
    text: str


class _Deadlined(http.client.HTTPConnection):
    """Wraps the connected socket, after TLS where there is TLS."""

    monotonic: Callable[[], float]

    def connect(self) -> None:
        super().connect()
        self.sock = DeadlineSocket(self.sock, self.monotonic)


class _Connection(_Deadlined):
    def __init__(self, host: str, port: int, monotonic: Callable[[], float]) -> None:
        super().__init__(host, port)
        self.monotonic = monotonic


class _TLSConnection(_Deadlined, http.client.HTTPSConnection):
    def __init__(
        self, host: str, port: int, monotonic: Callable[[], float], *, context: ssl.SSLContext
    ) -> None:
        http.client.HTTPSConnection.__init__(self, host, port, context=context)
        self.monotonic = monotonic


def _connect(connection: http.client.HTTPConnection) -> None:
    try:
        connection.connect()
    except OSError as error:  # timeouts and name errors included
        raise InferenceUnreachable(f"no connection to the inference server: {_name(error)}") from None


def _name(error: OSError) -> str:
    """Return the class and errno name: an OSError's text can hold host names, never payload."""
    return f"{type(error).__name__}" + (f" ({error.strerror})" if error.strerror else "")
