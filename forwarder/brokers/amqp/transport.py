"""RabbitMQ: queues are taken as they are, and a message keeps what it came with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import NotFound
from kombu import Queue
from kombu.transport import pyamqp
from kombu.utils.text import version_string_as_tuple

from forwarder.brokers.stopping import StopsAtOnce

#: From 4.3 on classic queues have no such limit and refuse the argument, and
#: quorum queues compare it with what a stock producer declares, which names none:
#: https://github.com/rabbitmq/rabbitmq-server/issues/17144
CONSUMER_TIMEOUT = "x-consumer-timeout"
COMPARED_FROM = (4, 3)

#: Seconds that an answer of a silent broker is waited for, and of one that sends heartbeats, but no answer.
ANSWER_TIMEOUT_S = 5.0
ANSWER_TOTAL_S = 20.0

#: The delivery mode of what is not meant to survive the broker: events, heartbeats
#: and the replies to remote control.
TRANSIENT = 1


class AdoptedQueue(Queue):
    """A queue that is consumed with whatever arguments it was created with.

    RabbitMQ closes the channel (406 PRECONDITION_FAILED) when a queue is
    declared again with other arguments, so a worker that declares "classic"
    can't consume a quorum queue, a priority queue or one with a dead-letter
    exchange that an operator made. Asking first (a passive declare) takes any.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Declare the queue unless it exists. Blocks for one or two round trips."""
        connection = (channel or self.channel).connection  # type: ignore[union-attr]
        # A failed passive declare closes its channel, so it gets one of its own.
        probe = connection.client.channel()
        try:
            self.queue_declare(passive=True, channel=probe)
        except NotFound:
            if _version(connection) >= COMPARED_FROM:
                self.queue_arguments = {
                    name: value
                    for name, value in (self.queue_arguments or {}).items()
                    if name != CONSUMER_TIMEOUT
                }
            return str(super().declare(nowait=nowait, channel=channel))
        finally:
            probe.close()
        return str(self.name)

    def consume(  # type: ignore[override]  # the stubs give the callback two arguments
        self, consumer_tag: str = "", callback: Callable[[Any], Any] | None = None, **options: Any
    ) -> Any:
        """Start consuming; each message is told the queue it was in.

        RabbitMQ tells the routing key, which is another thing where an operator
        bound the queue to an exchange.
        """

        def called_with_queue(raw: Any) -> Any:
            raw.delivery_info["queue"] = self.name
            return callback(raw) if callback is not None else None

        return super().consume(consumer_tag, called_with_queue, **options)  # type: ignore[arg-type]


class RawMessage(pyamqp.Message):
    """A message that can be published again exactly as it came: ``raw`` is what py-amqp received.

    kombu decompresses the body and forgets that it did.
    """

    def __init__(self, msg: Any, channel: Any = None, **options: Any) -> None:
        super().__init__(msg, channel=channel, **options)
        self.raw = msg


class Channel(pyamqp.Channel):
    """A channel that counts its lives: py-amqp opens one that the broker closed again."""

    Message = RawMessage
    life = 0

    #: py-amqp's own, not public.
    _confirm_selected: bool
    _basic_publish: Callable[..., Any]

    def wait(self, *args: Any, **options: Any) -> Any:
        """Wait for an answer as py-amqp does, but not for ever on a connection that is alive."""
        with self.connection.answering():
            return super().wait(*args, **options)

    def open(self) -> Any:
        """Open the channel, at first and after the broker closed it. Blocks for a round trip."""
        if not self.is_open:
            self.life += 1
        return super().open()

    def basic_publish_confirm(self, msg: Any, *args: Any, **options: Any) -> Any:
        """Publish, and block until the broker has the message; of transient ones nobody waits to hear.

        Celery publishes events and replies in its main loop, which is to notice
        that the broker is silent. A channel that has begun to confirm goes on with
        every message: confirmations are told apart by their order alone.
        """
        if msg.properties.get("delivery_mode") == TRANSIENT and not self._confirm_selected:
            return self._basic_publish(msg, *args, **options)
        return super().basic_publish_confirm(msg, *args, **options)


class Connection(pyamqp.Connection):
    """A connection with such channels, on which nothing is waited for without a bound."""

    Channel = Channel

    _answer_by_s: float | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Bound whatever is waited for inside by ``ANSWER_TOTAL_S``; the outermost bound holds."""
        before = self._answer_by_s
        if before is None:
            self._answer_by_s = time.monotonic() + ANSWER_TOTAL_S
        try:
            yield
        finally:
            self._answer_by_s = before

    def drain_events(self, timeout: float | None = None) -> Any:
        """Read until something came; raises TimeoutError after ``timeout`` seconds without a byte.

        None, with which py-amqp waits for every answer, is ``ANSWER_TIMEOUT_S``:
        Celery's main loop would otherwise wait for a frozen broker for good, and
        with it the look at the heartbeat. Heartbeats are bytes too.
        """
        if self._answer_by_s is not None and time.monotonic() > self._answer_by_s:
            raise TimeoutError("the broker sends heartbeats, but no answer")
        return super().drain_events(ANSWER_TIMEOUT_S if timeout is None else timeout)


class AMQPTransport(StopsAtOnce, pyamqp.Transport):
    """kombu's transport with the prefetch count per consumer.

    Celery asks for a count that all consumers of the channel share, which
    RabbitMQ refuses on quorum queues (540 NOT_IMPLEMENTED); whether an adopted
    queue is one, only the broker knows. Per consumer works on both kinds.
    """

    Connection = Connection

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Return True, which makes Celery ask for the count per consumer."""
        return True


def _version(connection: Any) -> tuple[int, ...]:
    """Return the broker's version; (0,) where it tells none."""
    told = connection.server_properties.get("version")
    return tuple(version_string_as_tuple(told)[:2]) if told else (0,)
