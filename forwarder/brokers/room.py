"""What the transports ask before they take messages; who answers is not theirs to know."""

from __future__ import annotations

from typing import Protocol


class Admission(Protocol):
    """Decides how many messages may be taken. No method blocks."""

    def room(self, *, free: int, held: int, payload_bytes: int) -> int:
        """Return how many of the ``free`` slots may be filled, 0 or more.

        ``held`` messages of ``payload_bytes`` in all are in flight.
        """

    def bytes_left(self, *, held: int, payload_bytes: int) -> int:
        """Return how many bytes more may be taken beside what is in flight; less than 1 is none."""


class EverySlot:
    """Admits a message for each free slot, whatever its size."""

    def room(self, *, free: int, held: int, payload_bytes: int) -> int:
        """Return the number of free slots."""
        return max(free, 0)

    def bytes_left(self, *, held: int, payload_bytes: int) -> int:
        """Return more than any message has."""
        return 2**53  # the largest that a Lua number can count to
