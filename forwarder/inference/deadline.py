"""A socket whose every read and write ends by one deadline.

A socket's own timeout starts anew with each byte, so a server that trickles
one byte every few seconds, in its headers or its body, is never timed out.
Here each operation gets what is left of the total, on any pool, without a
watching thread.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class DeadlineSocket:
    """Wraps a connected socket (plain or TLS) for :mod:`http.client`.

    ``arm`` must be called before each request. A read or a write raises
    TimeoutError when the other side is silent, or takes nothing, for longer than
    the bound on silence, or when the deadline has passed.
    """

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float]) -> None:
        self._sock = sock
        self._monotonic = monotonic
        self._deadline = 0.0
        self._silence_s = 0.0
        self._readers = 0
        self._closing = False

    def arm(self, *, deadline: float, silence_s: float) -> None:
        """Set the deadline (on the monotonic clock) and the bound on silence of the next request."""
        self._deadline = deadline
        self._silence_s = silence_s

    def sendall(self, data: ReadableBuffer) -> None:
        """Send everything before the deadline, or raise TimeoutError."""
        left = memoryview(data).cast("B")
        while left:
            self._sock.settimeout(self._left_s())
            left = left[self._sock.send(left) :]

    def recv_into(self, buffer: WriteableBuffer) -> int:
        """Read what is there, or raise TimeoutError."""
        self._sock.settimeout(self._left_s())
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        """Return the buffered reader that http.client reads answers from."""
        if mode != "rb":
            raise ValueError("only mode 'rb' is used by http.client")
        self._readers += 1
        return io.BufferedReader(_Reader(self), 65536)

    def stale(self) -> bool:
        """Return whether an idle connection can't be used again. Does not block.

        Nothing may arrive while no request is under way: an end of file means
        that the server closed, and stray bytes would be taken for the next answer.
        """
        self._sock.settimeout(0.0)
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Close now, or once the last reader is closed.

        http.client closes its socket while an answer with ``Connection: close``
        is still being read.
        """
        self._closing = True
        if self._readers == 0:
            self._sock.close()

    def reader_closed(self) -> None:
        """Note that a reader made by ``makefile`` is closed."""
        self._readers -= 1
        if self._closing and self._readers == 0:
            self._sock.close()

    def _left_s(self) -> float:
        left_s = self._deadline - self._monotonic()
        if left_s <= 0:
            raise TimeoutError("deadline passed")
        return min(left_s, self._silence_s)


class _Reader(io.RawIOBase):
    def __init__(self, sock: DeadlineSocket) -> None:
        super().__init__()
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock.reader_closed()
