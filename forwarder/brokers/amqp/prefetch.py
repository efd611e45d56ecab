"""How many messages RabbitMQ may push: it fills every prefetch at once, whatever the messages' size.

The count per consumer, the only one that quorum queues know, holds for a consumer
from its start: https://www.rabbitmq.com/docs/consumer-prefetch. So a new count is
a new consumer, and what the old one was given is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forwarder.brokers.leases import Delivery, LeaseBook

#: Of the distance to a smaller message, the part that the estimate moves with each one.
FORGETTING = 16


class Prefetch:
    """Keeps a consumer's prefetch within the slots that are open and the bytes that are left.

    ``slots`` returns how many messages Celery would hold. Until sizes were seen a
    message counts as ``message_bytes``.
    Used in Celery's main loop alone, but for ``due``.
    """

    def __init__(self, *, book: LeaseBook, slots: Callable[[], int], message_bytes: int) -> None:
        self._book = book
        self._slots = slots
        self._message_bytes = message_bytes
        self._seen = False
        self._count = 0
        #: What earlier consumers were given, as far as it is in flight.
        self._earlier: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<Prefetch count={self._count} message_bytes={self._message_bytes}>"

    def received(self, payload_bytes: int) -> None:
        """Learn from a message: the estimate follows larger ones at once, smaller ones slowly."""
        if not self._seen or payload_bytes > self._message_bytes:
            self._message_bytes = max(payload_bytes, 1)
            self._seen = True
        else:
            self._message_bytes -= (self._message_bytes - payload_bytes) // FORGETTING

    def begin(self, consumer: Any) -> None:
        """Set the count before the first messages come. Blocks for a round trip."""
        self._earlier = []
        self._count = self._wanted(len(consumer.queues))
        consumer.qos(prefetch_count=self._count)

    @property
    def exceeded(self) -> bool:
        """Return whether no more is to come now, and more can."""
        return self._count > 0 and self._book.bytes_left() < 1

    def adjust(self, consumer: Any) -> None:
        """Start the consumer anew if another count is due. Blocks for some round trips.

        Messages that are on their way arrive meanwhile.
        """
        if self._is_due(self._wanted(len(consumer.queues))):
            consumer.cancel()
            self._count = 0  # also if what follows fails: it is tried again
            self._earlier = self._book.held()
            wanted = self._wanted(len(consumer.queues))
            if wanted:
                consumer.qos(prefetch_count=wanted)
                consumer.consume()
                self._count = wanted

    def _is_due(self, wanted: int) -> bool:
        """Return whether it is worth a new consumer; estimates of sizes always move a little."""
        by_slots = self._by_slots()
        if min(wanted, self._count) == 0 or self._count > by_slots or wanted == by_slots:
            return wanted != self._count
        return not 0.75 * self._count <= wanted <= 1.25 * self._count

    def _by_slots(self) -> int:
        """Return how many messages the present consumer may hold, those that it holds among them."""
        self._earlier = [delivery for delivery in self._earlier if delivery in self._book]
        return self._book.room(self._slots()) + len(self._book) - len(self._earlier)

    def _wanted(self, queues: int) -> int:
        """Return the count for each of so many queues."""
        by_slots, held, left = self._by_slots(), len(self._book), self._book.bytes_left()
        if held and left < 1:
            return 0
        more = max(left, 0) // self._message_bytes // max(queues, 1)
        return max(0 if held else 1, min(by_slots, held - len(self._earlier) + more))
