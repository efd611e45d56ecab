"""The deadline of one call, and a socket whose every read and write ends by it.

A socket's own timeout starts anew with each byte, so a server that trickles
one byte every few seconds, in its headers or its body, is never timed out.
Here each operation gets what is left of the total, on any pool, without a
watching thread.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Callable

#: What one call may wait for other tasks' memory in all: an hour, like --task-timeout unless it is set.
PUT_OFF_MAX_S = 3600.0


class Deadline:
    """When a call must be over: ``total_s`` seconds from now, or ``within_s`` where its task ends before.

    ``put_off`` moves the former and never the latter.
    """

    def __init__(
        self, *, total_s: float, within_s: float | None = None, monotonic: Callable[[], float]
    ) -> None:
        now = monotonic()
        self._monotonic = monotonic
        self._task_ends = math.inf if within_s is None else now + within_s
        self._at = min(now + total_s, self._task_ends)
        self._put_off_left_s = PUT_OFF_MAX_S

    @property
    def left_s(self) -> float:
        """Return the seconds that are left, none or less past it."""
        return self._at - self._monotonic()

    @property
    def is_the_tasks_end(self) -> bool:
        """Return whether the task itself ends with it."""
        return self._at == self._task_ends

    def put_off(self, wait: Callable[[float], object]) -> None:
        """Wait for what isn't the server's doing, and move the deadline by as long as that took.

        ``wait`` is told for how many seconds it may block: until the task ends, and for PUT_OFF_MAX_S in
        all of a call's waits. What it raises passes through.
        """
        before = self._monotonic()
        try:
            wait(min(self._put_off_left_s, self._task_ends - before))
        finally:
            waited_s = self._monotonic() - before
            self._put_off_left_s -= waited_s
            self._at = min(self._at + waited_s, self._task_ends)


class DeadlineSocket:
    """Wraps a connected socket (plain or TLS).

    ``arm`` must be called before each request. A read or a write raises
    TimeoutError when the other side is silent, or takes nothing, for longer than
    the bound on silence, or when the deadline has passed.
    """

    _deadline: Deadline

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._silence_s = 0.0
        #: Whether any of the request has left.
        self.has_sent = False

    def arm(self, *, deadline: Deadline, silence_s: float) -> None:
        """Set the deadline and the bound on silence of the next request."""
        self._deadline = deadline
        self._silence_s = silence_s
        self.has_sent = False

    def sendall(self, data: bytes | memoryview) -> None:
        """Send everything before the deadline, or raise TimeoutError."""
        left = memoryview(data)
        while left:
            self._sock.settimeout(self._left_s())
            left = left[self._sock.send(left) :]
            self.has_sent = True

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
        left_s = self._deadline.left_s
        if left_s <= 0:
            raise TimeoutError("deadline passed")
        return min(left_s, self._silence_s)
