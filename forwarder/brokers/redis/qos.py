"""How many messages a channel may still take: as many as the lease book has slots for."""

from __future__ import annotations

from typing import Any

from kombu.common import PREFETCH_COUNT_MAX  # type: ignore[attr-defined]  # the stubs lack it
from kombu.transport import virtual

from forwarder.brokers.leases import LeaseBook


class BookedQoS(virtual.QoS):
    """Counts what the book holds, and leaves settling to it.

    What is in flight outlives its channel: it is neither given back when that
    closes, nor forgotten by the next one's prefetch count.
    """

    channel: Any

    @property
    def most(self) -> int:
        """Return how many messages may be held.

        kombu makes 0 of a count that passes its largest, as it does when that many tasks are held until
        their ETA, each of which raises it: no more are held then.
        """
        return self.prefetch_count or PREFETCH_COUNT_MAX

    def can_consume(self) -> bool:
        """Return whether there is room for a message."""
        return self._book.room(self.most) > 0

    def can_consume_max_estimate(self) -> int:
        """Return the number of messages there is room for."""
        return self._book.room(self.most)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Do nothing: it is registered already."""

    def ack(self, delivery_tag: str) -> None:
        """Do nothing: the book settles."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Do nothing: the book settles."""

    def restore_unacked(self) -> None:
        """Do nothing: a lease that ends gives the message to others."""

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing, as ``restore_unacked``."""

    @property
    def _book(self) -> LeaseBook:
        book: LeaseBook = self.channel.book
        return book
