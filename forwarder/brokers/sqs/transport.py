"""SQS: messages come from a receiver of our own, and only the lease book settles them.

kombu receives one message for each slot that falls free, never tells SQS for
how long it takes a message, deletes one by one, gives running tasks back when
its channel closes, and stops polling for good at an error in its event loop.
What is left of it here is what a message looks like, and publishing.

A file of its own, because kombu's SQS transport imports boto3.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from celery.worker import state
from kombu.transport import SQS, virtual

from forwarder.aws_errors import error_code, no_such_queue
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.calls import BATCH_MAX
from forwarder.brokers.sqs.leases import SqsLeases
from forwarder.brokers.sqs.messages import RawMessage
from forwarder.brokers.sqs.receiver import Receiver
from forwarder.brokers.stopping import StopsAtOnce
from forwarder.settings.table import BY_FIELD

log = logging.getLogger(__name__)

#: How a worker ends at once whose settings name no queue, and whose queue may not be had (``cli.exits``).
EXIT_WRONG_SETTINGS = 2
EXIT_REFUSED = 3


class GuardedMessage(virtual.Message):
    """A message of a queue, readable or not; its lease comes with it in any case."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception:  # noqa: BLE001 - whatever shape the envelope has, the consumer refuses it
            properties = {name: payload["properties"][name] for name in ("delivery_info", "delivery_tag")}
            empty = {"body": "", "headers": {}, "properties": properties}
            super().__init__(empty, channel=channel, **kwargs)


class NoBookkeeping(virtual.QoS):
    """Keeps the prefetch count and nothing else: the lease book knows what is in flight."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:  # not kombu's: it restores at exit
        self.channel = channel
        self.prefetch_count = prefetch_count or 0

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Do nothing."""

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing: a channel that closes ends no lease."""


class BookedChannel(SQS.Channel):
    """kombu's channel for publishing, with a receiver for consuming.

    A consumer's transport options have the ``book`` (:class:`LeaseBook`) whose
    leases are :class:`SqsLeases`. With it, all calls share its one boto client:
    stock kombu makes one for each queue name and another for each of its clients.
    """

    Message = GuardedMessage
    QoS = NoBookkeeping  # type: ignore[assignment]  # the stubs know kombu's own alone
    connection: Any

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.hub = None  # without one kombu starts no polling of its own
        self._receiver: Receiver | None = None

    @property
    def book(self) -> LeaseBook | None:
        """Return the consumer's lease book, None on a mere producer's connection."""
        book: LeaseBook | None = self.transport_options.get("book")
        return book

    def sqs(self, queue: str | None = None) -> Any:
        """Return the boto client."""
        return super().sqs(queue) if self.book is None else _leases(self.book).client

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Start to receive from the queue. Raises KeyError without a book."""
        book: LeaseBook = self.transport_options["book"]
        answer = super().basic_consume(queue, *args, **kwargs)
        book.expecting = lambda: _leases(book).polling
        self._receiver = Receiver(
            leases=_leases(book),
            slots=self._slots,
            arrived=partial(self.connection.arrived, self, queue),
            wanted=_worker_goes_on,
            answered=partial(setattr, book, "answered"),
        )
        self._receiver.start()
        return answer

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Receive no more; what was received and not yet delivered is handed back."""
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None
            _leases(self.transport_options["book"]).release()
        return super().basic_cancel(consumer_tag)

    def _size(self, queue: str) -> int:
        """Return about how many messages wait. Raises SystemExit where SQS refuses a consumer's queue.

        Celery asks when it declares the queue, before it consumes; for it any refusal is a bug, with a
        traceback. The worker drains as on every way out, so tasks in flight are safe.
        """
        try:
            return int(super()._size(queue))
        except Exception as error:
            if self.book is None or (code := error_code(error)) is None:
                raise
            missing = no_such_queue(error)
            log.error(
                "queue_%s setting=%r url=%s error=%s", "missing" if missing else "refused",
                BY_FIELD["sqs_url"].title, self._queue_cache.get(queue), code,
            )  # fmt: skip
            raise SystemExit(EXIT_WRONG_SETTINGS if missing else EXIT_REFUSED) from None

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Do nothing: the lease book settles."""

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Do nothing: the lease book settles."""

    def deliver(self, raw: RawMessage, queue: str) -> None:
        """Hand a message to its consumer, in the consumer's thread; without one it is handed back later."""
        callback = self.connection._callbacks.get(queue) if self.connection else None
        if callback is not None:
            callback(self._message_to_python(raw, queue, None))

    def _slots(self) -> tuple[int, int]:
        book: LeaseBook = self.transport_options["book"]
        held = len(book)
        return held + book.room(self.qos.prefetch_count or BATCH_MAX), held

    def _message_to_python(self, message: Any, queue_name: str, q_url: Any) -> Any:
        try:
            return super()._message_to_python(message, queue_name, q_url)  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - the consumer refuses it
            return self._envelope_payload({}, "", message, q_url)  # type: ignore[attr-defined]


class ReceivingTransport(SQS.Transport):
    """kombu's transport, fed by the channels' receivers on both of Celery's loops."""

    Channel = BookedChannel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._hub: Any = None
        self._inbox: deque[tuple[BookedChannel, str, RawMessage]] = deque()
        self._filled = threading.Condition()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver through Celery's event loop (prefork)."""
        self._hub = loop

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver what has arrived (gevent). Blocks until there is something; raises TimeoutError."""
        with self._filled:
            if not self._filled.wait_for(lambda: self._inbox, timeout):
                raise TimeoutError
        self._deliver_inbox()

    def arrived(self, channel: BookedChannel, queue: str, messages: Sequence[RawMessage]) -> None:
        """Take messages from a receiver, in its thread."""
        with self._filled:
            self._inbox.extend((channel, queue, raw) for raw in messages)
            self._filled.notify_all()
        if self._hub is not None:
            self._hub.call_soon(self._deliver_inbox)  # wakes the loop, from any thread

    def _deliver_inbox(self) -> None:
        while self._inbox and _worker_goes_on():
            channel, queue, raw = self._inbox.popleft()
            channel.deliver(raw, queue)


class SQSTransport(StopsAtOnce, ReceivingTransport):  # type: ignore[misc]  # as above
    """The worker's SQS transport."""


def _leases(book: LeaseBook) -> SqsLeases:
    return cast("SqsLeases", book.leases)


def _worker_goes_on() -> bool:
    return all(told is None for told in (state.should_stop, state.should_terminate))
