"""RabbitMQ: queues are taken as they are, and the prefetch count is per consumer."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import NotFound
from kombu import Queue
from kombu.transport import pyamqp

from forwarder.brokers.stopping import StopsAtOnce


class AdoptedQueue(Queue):
    """A queue that is consumed with whatever arguments it was created with.

    RabbitMQ closes the channel (406 PRECONDITION_FAILED) when a queue is
    declared again with other arguments, so a worker that declares "classic"
    can't consume a quorum queue, a priority queue or one with a dead-letter
    exchange that an operator made. Asking first (a passive declare) takes any.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Declare the queue unless it exists. Blocks for one or two round trips."""
        connection = (channel or self.channel).connection.client  # type: ignore[union-attr]
        # A failed passive declare closes its channel, so it gets one of its own.
        probe = connection.channel()
        try:
            self.queue_declare(passive=True, channel=probe)
        except NotFound:
            return str(super().declare(nowait=nowait, channel=channel))
        finally:
            probe.close()
        return str(self.name)


class AMQPTransport(StopsAtOnce, pyamqp.Transport):
    """kombu's transport with the prefetch count per consumer.

    Celery asks for a count that all consumers of the channel share, which
    RabbitMQ refuses on quorum queues (540 NOT_IMPLEMENTED); whether an adopted
    queue is one, only the broker knows. Per consumer works on both kinds.
    """

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Return True, which makes Celery ask for the count per consumer."""
        return True
