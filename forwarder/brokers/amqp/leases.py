"""RabbitMQ: the lease is the connection, and the count of deliveries travels with the message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked, NotFound
from celery.worker import state

from forwarder.brokers.amqp.copies import Copies
from forwarder.brokers.dead_letters import (
    DELIVERIES_HEADER,
    NoSuchQueue,
    dead_queue,
    earlier_deliveries,
    read_letter,
    with_death,
)
from forwarder.brokers.deliveries import Death, Delivery, Waiting

log = logging.getLogger(__name__)

#: What RabbitMQ answers where it takes no copy: the queue is full, or not this user's to write to.
REFUSALS = (ChannelError, MessageNacked, NoSuchQueue)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What settles a delivery: the channel that it came over, and the life of that channel then."""

    channel: Any = field(repr=False)
    life: int
    delivery_tag: int
    raw: Any = field(repr=False)
    # A copy: Celery makes its request out of the message's own.
    headers: Mapping[str, Any] = field(repr=False)

    @property
    def is_valid(self) -> bool:
        """Return whether the broker still regards the message as ours.

        When a channel ends, the broker gives what was delivered over it to
        somebody else. py-amqp opens a channel that the broker closed again, as
        the same object and with delivery tags that begin anew.
        """
        return bool(self.channel.is_open) and self.channel.life == self.life

    @property
    def is_disowned(self) -> bool:
        """Return whether the broker itself closed the channel, on a connection that it kept.

        So it does with a task that outlasts its limit (consumer_timeout), at each delivery.
        """
        return bool(self.channel.life != self.life)


class AmqpLeases:
    """Settles what RabbitMQ delivered, and counts deliveries in a header.

    The broker tells whether a message was delivered before, and not how often:
    classic queues don't count, and quorum queues count what a worker gave back
    as well. So a message that comes again is published as a copy with a higher
    count, and the copy is run. Copies go to the end of the queue.
    """

    def __init__(
        self,
        *,
        copies: Copies,
        queues: Sequence[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
        stopping: Callable[[], bool] = lambda: state.should_stop is not None,
    ) -> None:
        self._copies = copies
        self._queues = queues
        self._monotonic = monotonic
        self._stopping = stopping

    def recount(self, message: Any) -> bool:
        """Publish a message that was delivered before with its new count; return whether that was done.

        Blocks for a round trip. Where the broker takes no copy, the message is run
        with a count that only this process knows. Raises only what the consumer's
        own connection raises.
        """
        if not message.delivery_info.get("redelivered"):
            return False
        headers = {**message.headers, DELIVERIES_HEADER: _earlier(message)}
        try:
            self._copies.publish(_queue_of(message), message.raw, headers=headers)
        except Exception as error:  # noqa: BLE001 - a task that can be run is run
            log.warning("recount_failed queue=%s error=%s", _queue_of(message), type(error).__name__)
            return False
        message.channel.basic_ack(message.delivery_tag)
        return True

    def receive(self, message: Any) -> Delivery:
        """Return the delivery of a kombu message. No IO."""
        receipt = Receipt(
            channel=message.channel,
            life=message.channel.life,
            delivery_tag=message.delivery_tag,
            raw=message.raw,
            headers=dict(message.headers),
        )
        return Delivery(
            tag=str(message.delivery_tag),
            queue=_queue_of(message),
            number=_earlier(message) + 1,
            confirmed_s=self._monotonic(),
            message=message,
            # A copy is new to the broker.
            redelivered=bool(message.delivery_info.get("redelivered"))
            or DELIVERIES_HEADER in message.headers,
            receipt=receipt,
        )

    def ack(self, delivery: Delivery) -> bool:
        """Remove the message for good."""
        receipt: Receipt = delivery.receipt
        if not receipt.is_valid:
            return False
        receipt.channel.basic_ack(receipt.delivery_tag)
        return True

    def requeue(self, delivery: Delivery) -> bool:
        """Give the message back to the place it had; the next delivery is told that there was one before."""
        receipt: Receipt = delivery.receipt
        if not receipt.is_valid:
            return False
        receipt.channel.basic_reject(receipt.delivery_tag, requeue=True)
        return True

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Publish the messages again with the count they came with, then remove them.

        What it takes no copy of is given back to its place instead, and counts.
        Returns those whose channel is gone.
        """
        mine = [delivery for delivery in deliveries if delivery.receipt is not None]
        if self._stopping():
            self._stop_consuming(mine)
        lost = []
        for delivery in mine:
            receipt: Receipt = delivery.receipt
            if not receipt.is_valid:
                lost.append(delivery)
            else:
                headers = {**receipt.headers, DELIVERIES_HEADER: delivery.number - 1}
                try:
                    self._copies.publish(delivery.queue, receipt.raw, headers=headers)
                except REFUSALS as error:  # a full queue: what was held for it would keep it full
                    log.warning("hand_back_counts queue=%s error=%s", delivery.queue, type(error).__name__)
                    self.requeue(delivery)
                else:
                    self.ack(delivery)
                delivery.receipt = None  # not a second copy, when the rest has to be tried again
        return _lost(lost)

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        """Publish the message to the dead letters, which are made if need be, then remove it."""
        receipt: Receipt = delivery.receipt
        if not receipt.is_valid:
            return False
        self._copies.publish(
            dead_queue(delivery.queue),
            receipt.raw,
            headers=with_death(receipt.headers, death),
            without=("expiration",),  # nothing may vanish from there by itself
            create=True,
        )
        return self.ack(delivery)

    def put_off(self, delivery: Delivery) -> bool:
        """Publish the message again: a copy goes to the end of its queue."""
        return not self.hand_back([delivery])

    def refusal(self, error: Exception) -> str | None:
        """Return the kind of RabbitMQ's answer. No IO."""
        return type(error).__name__ if isinstance(error, REFUSALS) else None

    def letter(self, delivery: Delivery) -> tuple[str | None, int]:
        """Return the id and the bytes that the dead letters would show for the message. No IO."""
        receipt: Receipt = delivery.receipt
        shown = read_letter(receipt.headers, receipt.raw.body, queue=delivery.queue)
        return shown.id, shown.body_bytes

    def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the deliveries whose channel is gone; the connection's heartbeat keeps the others."""
        now_s = self._monotonic()
        lost = []
        for delivery in deliveries:
            if delivery.receipt is None or delivery.receipt.is_valid:  # None: handed back
                delivery.confirmed_s = now_s
            else:
                lost.append(delivery)
        return _lost(lost)

    def take_over(self) -> int:
        """Return 0: RabbitMQ gives a dead worker's messages to others by itself."""
        return 0

    def waiting(self) -> int:
        """Return how many messages wait. Blocks for a round trip a queue."""
        return sum(self._copies.waiting(queue) for queue in self._queues)

    def backlog(self) -> Sequence[Waiting]:
        """Return how many messages wait in each queue there is. Blocks for a round trip a queue."""
        found = []
        for queue in self._queues:
            with suppress(NotFound):  # the consumer has not made it yet
                found.append(Waiting(queue, self._copies.waiting(queue)))
        return found

    def disconnected(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return all of them: RabbitMQ gives them to others at once. No IO."""
        return _lost(deliveries)

    def close(self) -> None:
        """Close the connection for copies."""
        self._copies.close()

    def _stop_consuming(self, deliveries: Sequence[Delivery]) -> None:
        """Cancel the consumers: a copy must not come back to the process that hands it back.

        Celery does so too, but on gevent up to 2 s after the stop, when its loop
        wakes up. Without waiting for the answer, which is for that loop to read.
        """
        channels = {delivery.receipt.channel for delivery in deliveries if delivery.receipt.is_valid}
        for channel in channels:
            for consumer_tag in tuple(channel.callbacks):
                channel.basic_cancel(consumer_tag, nowait=True)


def _lost(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """Return them, those that the broker took away for their task's length marked."""
    for delivery in deliveries:
        receipt: Receipt | None = delivery.receipt  # None: handed back meanwhile
        delivery.blamed = receipt is not None and receipt.is_disowned
    return deliveries


def _earlier(message: Any) -> int:
    """Return how many deliveries came before this one."""
    return earlier_deliveries(message.headers) + (1 if message.delivery_info.get("redelivered") else 0)


def _queue_of(message: Any) -> str:
    info = message.delivery_info
    return str(info.get("queue") or info.get("routing_key"))
