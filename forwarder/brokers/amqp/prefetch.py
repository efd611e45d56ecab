"""How many messages RabbitMQ may push: it fills every prefetch at once, whatever the messages' size.

The count per consumer, the only one that quorum queues know, holds for a consumer
from its start: https://www.rabbitmq.com/docs/consumer-prefetch. So a larger count
is one more consumer beside those that there are, and a smaller one is some less.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from kombu import Consumer

from forwarder.brokers.leases import LeaseBook

#: Of the distance to a smaller message, the part that the estimate moves with each one.
FORGETTING = 16
#: A rise by less than this part of the count then waits for so many looks, about one a second: it may grow.
WORTHWHILE = 4
LOOKS = 5
#: Consumers that there may be before they begin anew.
CONSUMERS_MAX = 32

_numbers = count(1)


def beside(consumer: Any) -> Any:
    """Return a consumer of the same queues, on the same channel, that does the same with messages. No IO."""
    return Consumer(
        consumer.channel,
        queues=consumer.queues,
        accept=consumer.accept,
        on_message=consumer.on_message,
        on_decode_error=consumer.on_decode_error,
        auto_declare=False,
    )


class Prefetch:
    """Keeps what consumers may hold within the slots that are open and the bytes that are left.

    ``slots`` returns how many messages Celery would hold. Until sizes were seen a
    message counts as ``message_bytes``. What is held of consumers that were
    cancelled takes slots until it ends.
    Used in Celery's main loop alone, but for ``exceeded``.
    """

    def __init__(
        self,
        *,
        book: LeaseBook,
        slots: Callable[[], int],
        message_bytes: int,
        beside: Callable[[Any], Any] = beside,
    ) -> None:
        self._book = book
        self._slots = slots
        self._message_bytes = message_bytes
        self._beside = beside
        self._seen = False
        self._stopped = False
        #: The consumers and their counts, by what their tags begin with; the latest last.
        self._parts: dict[str, tuple[Any, int]] = {}
        self._queues: set[str] = set()
        #: Looks at which there was a rise, and it waited.
        self._looks = 0

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
        """Set the count of the consumer that Celery starts then. Blocks for a round trip."""
        self._queues = _names(consumer)
        self._prepare(consumer, max(1, self._wanted()))  # 0 would be no limit

    @property
    def exceeded(self) -> bool:
        """Return whether less is to come now than may."""
        return self._book.bytes_left() < 0 and self._count > 1

    def adjust(self, consumer: Any) -> None:
        """Cancel or start consumers beside the one of Celery, or that one. Blocks for some round trips.

        Messages that are on their way arrive meanwhile.
        """
        if self._stopped:
            return
        if self._queues != _names(consumer) or len(self._parts) > CONSUMERS_MAX:
            self._lower(to=0)
            self._queues = _names(consumer)
        by_slots, by_bytes = self._by_slots(), max(1, self._by_bytes())
        # Estimates of sizes always move a little.
        if self._count > by_slots or by_bytes < 0.75 * self._count:
            self._lower(to=min(by_slots, by_bytes))
        more = self._wanted() - self._count
        self._looks = self._looks + 1 if more > 0 else 0
        if more > 0 and self._is_worthwhile(more):
            is_free = all(consumer is not each for each, _ in self._parts.values())
            self._start(consumer if is_free else self._beside(consumer), more)
            self._looks = 0

    def stop(self) -> None:
        """Cancel all consumers for good. Blocks for a round trip each."""
        self._stopped = True
        self._lower(to=0)

    @property
    def _count(self) -> int:
        return sum(number for _, number in self._parts.values())

    def _is_worthwhile(self, more: int) -> bool:
        after = self._count + more
        if more * WORTHWHILE >= after:
            return True
        # As many as the bytes suffice for always moves a little.
        return self._looks > LOOKS and after + self._strays() == self._by_slots()

    def _wanted(self) -> int:
        """Return the count, for each queue, that slots and bytes suffice for; of one message at least."""
        by_bytes = self._by_bytes() if len(self._book) else max(1, self._by_bytes())
        return min(self._by_slots() - self._strays(), by_bytes)

    def _by_slots(self) -> int:
        """Return how many messages may be held by who holds none: closed slots that run do not hide it."""
        return self._book.admission.room(free=self._slots(), held=0, payload_bytes=0)

    def _by_bytes(self) -> int:
        """Return how many messages these consumers may hold, those that they hold among them."""
        left, queues = self._book.bytes_left(), max(len(self._queues), 1)
        return len(self._book) - self._strays() + left // self._message_bytes // queues if left >= 0 else 0

    def _strays(self) -> int:
        """Return how many messages are held that none of these consumers was given."""
        tags = [str(each.message.delivery_info.get("consumer_tag")) for each in self._book.held()]
        return sum(tag.partition(".")[0] not in self._parts for tag in tags)

    def _lower(self, *, to: int) -> None:
        """Cancel the latest until the others' count is no larger: so one that came for a while goes alone."""
        while self._count > to:
            _, (consumer, _) = self._parts.popitem()
            consumer.cancel()

    def _start(self, consumer: Any, number: int) -> None:
        name = self._prepare(consumer, number)
        try:
            consumer.consume()
        except Exception:
            del self._parts[name]  # it is tried again
            raise

    def _prepare(self, consumer: Any, number: int) -> str:
        name = f"forwarder-{next(_numbers)}"
        consumer.tag_prefix = f"{name}."
        consumer.qos(prefetch_count=number)
        self._parts[name] = (consumer, number)
        return name


def _names(consumer: Any) -> set[str]:
    return {queue.name for queue in consumer.queues}
