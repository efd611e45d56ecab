"""Messages published once more: on RabbitMQ nothing in a message changes but in a copy of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

from amqp import Message
from amqp.exceptions import ChannelError, MessageNacked
from kombu import Connection

from forwarder.brokers.amqp.transport import ANSWER_TIMEOUT_S
from forwarder.brokers.dead_letters import NoSuchQueue

#: RabbitMQ refuses a copy in the name of another user than its own:
#: https://www.rabbitmq.com/docs/validated-user-id
NOT_COPIED = ("user_id",)


class Copies:
    """Publishes copies of messages, each confirmed by the broker; thread-safe.

    On a connection of its own, made when it is first needed: the consumer's is
    read by one thread alone, and a confirmation would have to be waited for
    there. It has no heartbeat, so one that died while it was idle is noticed at
    the next copy, which is then tried on a new connection.
    """

    def __init__(self, *, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._channel: Any = None
        self._returned = False

    def __repr__(self) -> str:
        return f"<Copies {'connected' if self._connection else 'not connected'}>"

    def publish(
        self,
        queue: str,
        raw: Message,
        *,
        headers: Mapping[str, Any],
        without: tuple[str, ...] = (),
        create: bool = False,
    ) -> None:
        """Publish a copy with other headers, and return once the broker has it for good.

        ``raw`` is a message as py-amqp received it; its body and its properties
        stay, but for those named by ``without``. ``create`` makes the queue if it
        does not exist. Blocks for a round trip, at most a few times the timeout
        where the broker is silent. Raises NoSuchQueue, and what py-amqp and kombu
        raise.
        """
        properties = {
            name: value for name, value in raw.properties.items() if name not in (*NOT_COPIED, *without)
        }
        properties["application_headers"] = dict(headers)
        copy = Message(raw.body, **properties)
        with self._lock:
            try:
                idle = self._channel is not None
                try:
                    self._send(queue, copy, create=create)
                except (ChannelError, MessageNacked):
                    raise  # the broker's answer
                except Exception:
                    if not idle:
                        raise
                    self._drop()
                    self._send(queue, copy, create=create)
            except NoSuchQueue:
                raise
            except Exception:
                # Confirmations are told apart by their order alone: one that is
                # still to come must not be taken for the next copy's.
                self._drop()
                raise

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue. Blocks for a round trip; raises as ``publish``."""
        with self._lock:
            try:
                return int(self._open().queue_declare(queue, passive=True).message_count)
            except Exception:
                self._drop()
                raise

    def close(self) -> None:
        """Close the connection; the next copy opens another."""
        with self._lock:
            self._drop()

    def _send(self, queue: str, copy: Message, *, create: bool) -> None:
        if self._arrived(queue, copy):
            return
        if not create:
            raise NoSuchQueue(queue)
        self._channel.queue_declare(
            queue, durable=True, auto_delete=False, arguments={"x-queue-type": "classic"}
        )
        if not self._arrived(queue, copy):
            raise NoSuchQueue(queue)

    def _arrived(self, queue: str, copy: Message) -> bool:
        """Publish through the default exchange; return whether there is such a queue."""
        channel = self._open()
        self._returned = False
        channel.basic_publish_confirm(copy, exchange="", routing_key=queue, mandatory=True)
        return not self._returned

    def _open(self) -> Any:
        if self._channel is None:
            self._connection = open_bounded(self._connect())
            self._channel = self._connection.channel()
            self._channel.events["basic_return"].add(self._on_return)
        return self._channel

    def _on_return(self, *_: Any) -> None:
        """Note an unroutable copy. Without a listener py-amqp raises, and leaves the confirmation unread."""
        self._returned = True

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()


def open_bounded(connection: Connection) -> Connection:
    """Connect, and bound writing too: a copy may be larger than what a silent broker's socket takes.

    Blocks for at most twice the connection's own connect timeout. Raises what kombu raises.
    """
    connection.ensure_connection(max_retries=1, interval_start=0)
    connection.connection.sock.settimeout(ANSWER_TIMEOUT_S)
    return connection
