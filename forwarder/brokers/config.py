"""Settings to Celery's broker configuration: a pure function per broker."""

from __future__ import annotations

from typing import Any

from kombu import Queue

from forwarder.brokers.leases import LeaseBook
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings

#: Connections beyond one per task: event loop, subscriptions, publishing, refusals.
SPARE_CONNECTIONS = 10

#: SQS long polling in seconds, 20 at most. A worker that stops waits within its drain for the poll that is on
#: its way, because SQS would give a message to one that is left behind. So the long one, which makes an idle
#: worker's calls six a minute, is for drains that outlast it:
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
SQS_WAIT_S = 10
SQS_SHORT_WAIT_S = 3
#: How much longer than its wait a poll may take until it has failed.
SQS_ANSWER_S = 2

#: RabbitMQ's own default, in seconds: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
CONSUMER_TIMEOUT_S_MIN = 1800


def broker_config(settings: Settings) -> dict[str, Any]:
    """Return the part of Celery's configuration that the broker decides."""
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker without its broker waits for it
        "task_default_queue": settings.queues[0],
        **_BY_KIND[settings.broker_kind](settings),
    }


def consuming_config(settings: Settings, book: LeaseBook) -> dict[str, Any]:
    """Return what a worker's configuration has beyond that of a client: leases, and limits on messages."""
    options = broker_config(settings)["broker_transport_options"]
    if settings.broker_kind != "amqp":  # there every option goes to py-amqp; its leases are connections
        options = {**options, "book": book}
    return {
        "broker_transport_options": options,
        "worker_consumer": "forwarder.brokers.consumer:ForwarderConsumer",
        "forwarder_book": book,
        "forwarder_max_deliveries": settings.max_deliveries,
        "forwarder_message_bytes_max": settings.message_bytes_max,
        "forwarder_pushed": settings.broker_kind == "amqp",
        # No partial: ``inspect conf`` shows its repr.
        "forwarder_make_queue": lambda name: worker_queue(settings, name),
        # Running copies outlive a connection, and the book counts them.
        "worker_enable_prefetch_count_reduction": False,
        # What a lost connection takes away is cancelled by the consumer.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def worker_queue(settings: Settings, name: str) -> Queue:
    """Return a queue as a worker consumes it, and declares it where there is none of that name."""
    if settings.broker_kind != "amqp":
        return Queue(name, routing_key=name)
    from forwarder.brokers.amqp.transport import CONSUMER_TIMEOUT, AdoptedQueue

    # RabbitMQ takes back what is not acked in time, in 30 minutes if it is not told otherwise.
    arguments: dict[str, Any] = {CONSUMER_TIMEOUT: 1000 * consumer_timeout_s(settings)}
    if settings.queue_type == "quorum":
        arguments["x-queue-type"] = "quorum"
    return AdoptedQueue(name, routing_key=name, queue_arguments=arguments)


def _queues(settings: Settings) -> list[Queue]:
    return [worker_queue(settings, name) for name in settings.queues]


def _redis(settings: Settings) -> dict[str, Any]:
    return {
        "broker_transport": "forwarder.brokers.redis.transport:RedisTransport",
        # A server that refuses writes for a while (MISCONF, OOM, READONLY) must not end the worker.
        "broker_channel_error_retry": True,
        "task_queues": _queues(settings),
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            "wait_s": settings.redis_wait_s,
            # Unset, many greenlets that ack at once run into MaxConnectionsError.
            "max_connections": settings.slots_max + SPARE_CONNECTIONS,
            "socket_keepalive": True,
            # Half-open connections are noticed within about 17 seconds.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "health_check_interval": 8,
        },
    }


def _sqs(settings: Settings) -> dict[str, Any]:
    queue = settings.queues[0]
    url = {"url": settings.sqs_url}
    return {
        "broker_transport": "forwarder.brokers.sqs.transport:SQSTransport",
        "task_queues": _queues(settings),
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


def sqs_wait_s(settings: Settings) -> int:
    """Return how long one poll of SQS waits for a message, in seconds."""
    if settings.sqs_wait_s is not None:
        return settings.sqs_wait_s
    return SQS_WAIT_S if settings.drain_timeout_s >= SQS_WAIT_S + SQS_ANSWER_S else SQS_SHORT_WAIT_S


def _amqp(settings: Settings) -> dict[str, Any]:
    return {
        "broker_transport": "forwarder.brokers.amqp.transport:AMQPTransport",
        "task_queues": _queues(settings),
        "broker_heartbeat": heartbeat_s(settings.visibility_timeout_s),
        # A channel that the broker closes is opened anew; Celery would end the worker.
        "broker_channel_error_retry": True,
        # Publisher confirms: a task that goes back to the queue is acked only once
        # the broker has its new message.
        "broker_transport_options": {"confirm_publish": True},
    }


def heartbeat_s(visibility_timeout_s: int) -> int:
    """Return the heartbeat at which a dead peer is noticed within the visibility timeout and 10 s.

    RabbitMQ takes up to three intervals (it looks once in each, and gives up at
    the second without a byte), py-amqp two and a half.
    """
    return min(30, (visibility_timeout_s + 10) // 3)


def consumer_timeout_s(settings: Settings) -> int:
    """Return how long a task may stay unacked: twice as long as it is held where all goes slowly."""
    return max(CONSUMER_TIMEOUT_S_MIN, int(2 * held_s(settings)))


_BY_KIND = {"redis": _redis, "sqs": _sqs, "amqp": _amqp}


def _sqs_name(queue: str) -> str:
    """Return the name as kombu's SQS channel spells it: dots to dashes, other punctuation to underscores."""
    from kombu.transport.SQS import CHARS_REPLACE_TABLE

    if queue.endswith(".fifo"):
        return queue[: -len(".fifo")].translate(CHARS_REPLACE_TABLE) + ".fifo"
    return queue.translate(CHARS_REPLACE_TABLE)
