"""From a name that a task's sender chose to its addresses: a few look-ups at a time.

gevent has ten threads for every look-up of a process (``Hub.threadpool_size``), and one that hangs keeps
its thread until the system gives it up. Were they all taken, nothing could be connected to any more.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence

AT_ONCE = 3
WAIT_S = 15.0


def is_address(host: str) -> bool:
    """Return whether the host is an address, which nobody needs to look up. Pure."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def resolve(host: str, port: int) -> list[str]:
    """Return the host's addresses in the system's order. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Lookups:
    """Looks hosts up, AT_ONCE at a time. Safe to share between greenlets or threads."""

    def __init__(self, *, resolve: Callable[[str, int], Sequence[str]] = resolve) -> None:
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the host's addresses in the system's order.

        Blocks for WAIT_S seconds at most until others are done, and then for the system. Raises
        OSError where the name has no address, and TimeoutError, which is one, past the wait.
        """
        if is_address(host):
            return [host]
        if not self._places.acquire(timeout=WAIT_S):
            raise TimeoutError("too many look-ups hang")
        try:
            return self._resolve(host, port)
        finally:
            self._places.release()
