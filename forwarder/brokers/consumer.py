"""The worker's consumer: every message enters the lease book, and what can't be run is put aside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from celery import states
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.loops import asynloop, synloop
from kombu import Queue
from kombu.common import ignore_errors
from vine import promise

from forwarder.brokers.amqp.prefetch import Prefetch
from forwarder.brokers.background import in_background, insist_in_background
from forwarder.brokers.deliveries import ID_CHARS_MAX, Delivery, Settlement, body_bytes
from forwarder.brokers.leases import LeaseBook
from forwarder.forwarding.errors import DeadLettered, ForwarderError, InvalidMessage, UnknownTask
from forwarder.forwarding.ports import PARDONS_MAX

log = logging.getLogger(__name__)

NAME_CHARS_MAX = 100
#: Seconds between two turns of the event loop that are noted.
TURN_S = 1.0
#: Seconds between tries to store the failure of a refused message.
REFUSAL_RETRY_S = 5.0


class LoopBeat(Protocol):
    """Hears of each turn of the consumer's loop; from ``pause`` to the next turn it is not to be missed."""

    def __call__(self) -> None: ...
    def pause(self) -> None: ...


class ForwarderConsumer(Consumer):
    """Celery's consumer, with leases and its own way of refusing messages.

    Celery logs up to 1,024 characters of a refused body, drops the message and
    leaves its sender without an answer. Here the sender gets a FAILURE with a
    code wherever the message has an id, the message goes to the dead letters,
    the log gets one line without payload, and whatever goes wrong while one
    message is received ends with that message.
    """

    #: Set by Celery: from the transport, and for each task that it knows.
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    strategies: dict[str, Any]
    hub: Any
    pool: Any
    task_consumer: Any
    qos: Any
    #: Whether the broker pushes messages: the others are asked for them.
    pushed = False
    _prefetch: Prefetch | None = None
    #: Why the channel is closed since a pending operation; the blocking loop ends with it.
    _lost_channel: Exception | None = None
    _beat: LoopBeat | None = None
    #: Overridden by tests only; Celery makes the consumer, so they can't be passed in.
    in_background: Callable[[Callable[[], None]], None] = staticmethod(in_background)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, on_task_request: Callable[[Any], Any], *, app: Any, **kwargs: Any) -> None:
        self._book: LeaseBook = app.conf.forwarder_book
        self._store: Any = app.conf.forwarder_store
        self._max_deliveries: int = app.conf.forwarder_max_deliveries
        self._message_bytes_max: int = app.conf.forwarder_message_bytes_max
        self._beat = app.conf.get("forwarder_loop_beat")
        self.pushed = app.conf.forwarder_pushed
        self._make_queue: Callable[[str], Queue] = app.conf.forwarder_make_queue
        super().__init__(on_task_request, app=app, **kwargs)

    def loop(self, *args: Any) -> None:
        """Run the loop that Celery would take; it ends with the connection, or with the worker."""
        try:
            (asynloop if self.hub else synloop)(*args)
        finally:
            if self._beat is not None:
                self._beat.pause()

    def perform_pending_operations(self) -> None:
        """Do them, as the blocking loop (gevent) asks for at the beginning of each turn."""
        if self._beat is not None:
            self._beat()
        super().perform_pending_operations()
        if (error := self._lost_channel) is not None:  # there Celery swallows what one of them raised
            self._lost_channel = None
            raise error

    def create_task_handler(self, promise: type[promise] = promise) -> Callable[[Any], Any]:
        """Return the function that is called with each message."""
        handle = super().create_task_handler(promise)
        prefetch = self._begin_prefetch()

        def handle_or_refuse(message: Any) -> Any:
            if self._book.leases.recount(message):
                return None
            delivery = self._book.open(message)
            if prefetch is not None:
                prefetch.received(delivery.payload_bytes)
                if prefetch.exceeded:
                    self.call_soon(self._adjust_prefetch)
            message.delivery = delivery
            # By our own count: not every broker marks it, and a producer can write it.
            message.delivery_info["redelivered"] = delivery.redelivered or delivery.number > 1
            try:
                error = self._refusal(delivery)
                if error is not None:
                    return self._refuse(message, error, None)
                return handle(message)
            except KeyError as failure:  # kombu counts it among Redis's connection errors
                return self._refuse(message, InvalidMessage("the message lacks a header"), failure)
            except self.connection_errors:
                raise
            except Reject:  # Celery gave the task up, and the store that is to know is away
                return self._book.settle(delivery, Settlement.REQUEUE)
            except Exception as failure:  # noqa: BLE001 - one message must not end the worker
                return self._refuse(message, InvalidMessage("the message can't be read as a task"), failure)

        return handle_or_refuse

    def _begin_prefetch(self) -> Prefetch | None:
        """Take the prefetch count over from Celery where the broker pushes. Blocks for a round trip."""
        if self.pushed:
            self._prefetch = Prefetch(
                book=self._book, slots=lambda: self.qos.value, message_bytes=self._message_bytes_max
            )
            self._prefetch.begin(self.task_consumer)
            self._book.ticked = lambda: self.call_soon(self._adjust_prefetch)
        return self._prefetch

    def _adjust_prefetch(self) -> None:
        """Run in Celery's main loop, which alone may use the consumer's channel."""
        if self._prefetch is not None and self.task_consumer is not None and state.should_stop is None:
            self._prefetch.adjust(self.task_consumer)

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the book wake the loop, which asks for the next message only when it is awake."""
        super().register_with_event_loop(hub)
        if self._beat is not None:
            self._beat()
            hub.call_repeatedly(TURN_S, self._beat)
        self._book.wake = lambda: hub.call_soon(_look_again)

    def update_strategies(self) -> None:
        """Serve our task alone: Celery's built-in ones would be acked past the book."""
        super().update_strategies()
        for name in [name for name in self.strategies if name.startswith("celery.")]:
            del self.strategies[name]

    def add_task_queue(self, queue: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]  # it returns nothing
        """Consume from one more queue, as remote control asks; its name alone counts. Blocks.

        As Celery declares it, RabbitMQ refuses one that exists with other arguments; and one that
        it refuses would be declared again after each reconnection, for ever.
        """
        queues = self.app.amqp.queues
        if queue not in queues:
            queues.add(self._make_queue(queue))
        try:
            super().add_task_queue(queue)
        except (*self.connection_errors, *self.channel_errors) as error:
            queues.deselect([queue])
            log.warning("queue_not_added queue=%s error=%s", queue, type(error).__name__)
            self._lost_channel = error
            raise

    def _refusal(self, delivery: Delivery) -> ForwarderError | None:
        """Return why a message is not even to be looked at, None when it is to be run.

        One that was delivered too often still goes through the pool: there its
        pardons are looked up, and its failure is stored. If that did not end well
        either, whatever was pardoned, it is put aside here.
        """
        message = delivery.message
        # Redis keeps a body over the limit to itself, and tells its size.
        size = (message.properties or {}).get("item_bytes") or body_bytes(message)
        if size > self._message_bytes_max:
            return InvalidMessage(
                f"the message of {size} bytes passes the limit of {self._message_bytes_max}"
            )
        if delivery.number > self._max_deliveries + PARDONS_MAX + 1:
            return DeadLettered(f"delivered {delivery.number - 1} times without an outcome")
        if delivery.task_id is None and "id" in (message.headers or {}):
            return InvalidMessage(f"the task id is not a text of 1 to {ID_CHARS_MAX} characters in UTF-8")
        return None

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Refuse a message whose body can't be decoded."""
        self._refuse(message, InvalidMessage("the message's body is not JSON in UTF-8"), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Refuse a message that is not a Celery task message."""
        self._refuse(message, InvalidMessage("the message is not a Celery task message"), None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task that this worker does not serve."""
        name = (message.headers or {}).get("task")
        shown = name[:NAME_CHARS_MAX] if isinstance(name, str) else "of protocol 1"
        self._refuse(message, UnknownTask(f"this worker does not serve the task {shown!r}"), exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task message with headers or a content type that Celery does not take."""
        self._refuse(message, InvalidMessage("the task message is not valid"), exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Cancel what the broker gives to others now, then reconnect as Celery does."""
        for delivery in self._book.leases.disconnected(self._book.held()):
            if self._book.lose(delivery):
                log.warning("lease_lost task_id=%s at=disconnection", delivery.task_id)
                self.cancel(delivery)
        super().on_connection_error_after_connected(exc)

    def on_close(self) -> None:
        """Hand back what no slot has begun: Celery forgets it when the connection or the worker ends."""
        if self._prefetch is not None and state.should_stop is not None:
            ignore_errors(self, self._prefetch.stop)  # Celery knows one of these consumers
        waiting = [delivery for delivery in self._book.held() if not delivery.begun]
        super().on_close()  # first: it ends the timers of requests that it still knows
        for delivery in waiting:
            self.cancel(delivery)
        self._book.hand_back(waiting)

    def shutdown(self) -> None:
        """Hand back what is still held before the connection closes, with which RabbitMQ's leases end."""
        held = self._book.held()
        for delivery in held:
            self.cancel(delivery)
        self._book.hand_back(held)
        super().shutdown()

    def cancel(self, delivery: Delivery) -> None:
        """End the running copy of a task, if there is one; settles nothing."""
        if delivery.request is not None:
            delivery.request.abandon(self.pool)

    def _refuse(self, message: Any, error: ForwarderError, cause: Exception | None) -> None:
        if not hasattr(message, "delivery"):  # kombu could not unpack it, and tells before it hands it over
            message.delivery = self._book.open(message)
        delivery: Delivery | None = message.delivery
        if delivery is None:
            return  # it is settled
        letter_id, size = self._letter(delivery)
        # It was told when it came first, and comes again and again.
        told = delivery.redelivered and delivery.queue in self._book.refused_letters
        log.log(
            logging.DEBUG if told else logging.WARNING,
            "message_refused code=%s task_id=%s letter_id=%s error=%s body_bytes=%d",
            error.code, delivery.task_id, letter_id, type(cause).__name__ if cause else None, size,
        )  # fmt: skip
        # Not in Celery's loop: a result store that is frozen would stop it. Its lease is kept meanwhile.
        if not insist_in_background(
            partial(self._put_aside, delivery, error),
            gate=self._book.unforked,
            pause_s=REFUSAL_RETRY_S,
            sleep=self.sleep,
            in_background=self.in_background,
        ):
            self._book.settle(delivery, Settlement.HAND_BACK)

    def _letter(self, delivery: Delivery) -> tuple[str | None, int]:
        """Return what to look for in the dead letters: the beginning of its id there, and its bytes."""
        try:
            letter_id, size = self._book.leases.letter(delivery)
        except Exception:  # noqa: BLE001 - whatever shape it has, telling of it must not end the worker
            return delivery.task_id, delivery.payload_bytes
        return letter_id and letter_id[:ID_CHARS_MAX], size

    def _put_aside(self, delivery: Delivery, error: ForwarderError) -> bool:
        """Store the failure, then move the message; return False when the store is away. Blocks."""
        if delivery in self._book:
            if not self._is_stored(delivery, error):
                return False
            if self._book.settle(delivery, Settlement.PUT_ASIDE, delivery.death(error.code, str(error))):
                self._book.concluded(delivery, error.code)
        self._book.wake()
        return True

    def _is_stored(self, delivery: Delivery, error: ForwarderError) -> bool:
        """Store the failure, unless there is an outcome; return False when the store is away."""
        if delivery.task_id is None:
            return True
        try:
            if self._store.find(delivery.task_id) is None:
                self._store.store_result(delivery.task_id, error, states.FAILURE)
        except Exception as failure:  # noqa: BLE001 - whatever it was, a later try may do
            log.warning("result_store_failed task_id=%s error=%s", delivery.task_id, type(failure).__name__)
            return False
        return True


def _look_again() -> None:
    """Do nothing; before it sleeps again the loop looks for free slots."""
