"""A socket whose every read and write ends by one deadline.

A socket's own timeout starts anew with each byte, so a server that trickles
one byte every few seconds, in its headers or its body, is never timed out.
Here each operation gets what is left of the total, on any pool, without a
watching thread.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable


class DeadlineSocket:
    """Wraps a connected socket (plain or TLS).

    ``arm`` must be called before each request. A read or a write raises
    TimeoutError when the other side is silent, or takes nothing, for longer than
    the bound on silence, or when the deadline has passed.
    """

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float]) -> None:
        self._sock = sock
        self._monotonic = monotonic
        self._deadline = 0.0
        self._silence_s = 0.0

    def arm(self, *, deadline: float, silence_s: float) -> None:
        """Set the deadline (on the monotonic clock) and the bound on silence of the next request."""
        self._deadline = deadline
        self._silence_s = silence_s

    def sendall(self, data: bytes | memoryview) -> None:
        """Send everything before the deadline, or raise TimeoutError."""
        left = memoryview(data)
        while left:
            self._sock.settimeout(self._left_s())
            left = left[self._sock.send(left) :]

    def recv(self, bytes_max: int) -> bytes:
        """Read what is there, nothing at the end of the connection, or raise TimeoutError."""
        self._sock.settimeout(self._left_s())
        return self._sock.recv(bytes_max)

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
        """Close now."""
        self._sock.close()

    def _left_s(self) -> float:
        left_s = self._deadline - self._monotonic()
        if left_s <= 0:
            raise TimeoutError("deadline passed")
        return min(left_s, self._silence_s)
