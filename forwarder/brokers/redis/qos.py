"""How many messages a channel may still take: as many as the lease book has slots for."""

from __future__ import annotations

from typing import Any

from kombu.transport import virtual

from forwarder.brokers.leases import LeaseBook


class BookedQoS(virtual.QoS):
    """Counts what the book holds, and leaves settling to it.

    What is in flight outlives its channel: it is neither given back when that
    closes, nor forgotten by the next one's prefetch count.
    """

    channel: Any

    def can_consume(self) -> bool:
        """Return whether there is room for a message."""
        return not self.prefetch_count or self._book.room(self.prefetch_count) > 0

    def can_consume_max_estimate(self) -> int | None:  # type: ignore[override]  # kombu returns None, too
        """Return the number of messages there is room for; None is no limit."""
        return self._book.room(self.prefetch_count) if self.prefetch_count else None

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
