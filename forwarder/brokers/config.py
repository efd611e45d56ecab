"""Settings to Celery's broker configuration: a pure function per broker."""

from __future__ import annotations

from typing import Any

from kombu import Queue

from forwarder.settings.model import Settings

#: Connections beyond one per task: event loop, subscriptions, publishing, refusals.
SPARE_CONNECTIONS = 10

#: SQS long polling in seconds, 20 at most. At 10 an idle worker makes six calls a
#: minute; the price is that stopping may wait as long.
SQS_WAIT_S = 10


def broker_config(settings: Settings) -> dict[str, Any]:
    """Return the part of Celery's configuration that the broker decides."""
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker without its broker waits for it
        "task_default_queue": settings.queues[0],
        **_BY_KIND[settings.broker_kind](settings),
    }


def _redis(settings: Settings) -> dict[str, Any]:
    return {
        "broker_transport": "forwarder.brokers.redis:RedisTransport",
        "task_queues": [Queue(name, routing_key=name) for name in settings.queues],
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            # Unset, many greenlets that ack at once run into MaxConnectionsError.
            "max_connections": settings.concurrency + SPARE_CONNECTIONS,
            "socket_keepalive": True,
        },
    }


def _sqs(settings: Settings) -> dict[str, Any]:
    queue = settings.queues[0]
    url = {"url": settings.sqs_url}
    return {
        "broker_transport": "forwarder.brokers.sqs:SQSTransport",
        "task_queues": [Queue(queue, routing_key=queue)],
        "worker_enable_remote_control": False,  # SQS has no broadcast
        "worker_send_task_events": False,
        "broker_transport_options": {
            # Under both names: kombu looks a queue up as written and as SQS would spell it.
            "predefined_queues": {queue: url, _sqs_name(queue): url},
            "visibility_timeout": settings.visibility_timeout_s,
            "wait_time_seconds": SQS_WAIT_S,
            # Adds to the wait above; with 0 kombu spins while every slot is taken.
            "polling_interval": 0.1,
        },
    }


def _amqp(settings: Settings) -> dict[str, Any]:
    from forwarder.brokers.amqp import AdoptedQueue

    arguments = {"x-queue-type": "quorum"} if settings.queue_type == "quorum" else {}
    return {
        "broker_transport": "forwarder.brokers.amqp:AMQPTransport",
        "task_queues": [
            AdoptedQueue(name, routing_key=name, queue_arguments=arguments) for name in settings.queues
        ],
        "broker_heartbeat": 30,
        # Publisher confirms: a task that goes back to the queue is acked only once
        # the broker has its new message.
        "broker_transport_options": {"confirm_publish": True},
    }


_BY_KIND = {"redis": _redis, "sqs": _sqs, "amqp": _amqp}


def _sqs_name(queue: str) -> str:
    """Return the name as kombu's SQS channel spells it: dots to dashes, other punctuation to underscores."""
    from kombu.transport.SQS import CHARS_REPLACE_TABLE

    if queue.endswith(".fifo"):
        return queue[: -len(".fifo")].translate(CHARS_REPLACE_TABLE) + ".fifo"
    return queue.translate(CHARS_REPLACE_TABLE)
