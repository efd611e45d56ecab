"""Settings of the broker and of the results."""

from __future__ import annotations

from forwarder.settings import kinds
from forwarder.settings.redact import without_password
from forwarder.settings.spec import Spec

BROKER = (
    Spec(
        "broker_url",
        "--broker-url",
        "FORWARDER_BROKER_URL",
        kinds.BROKER_URL,
        "Where tasks come from. With sqs:// the credentials, region and endpoint are AWS's own settings.",
        redacted=without_password,
    ),
    Spec(
        "result_backend",
        "--result-backend",
        "FORWARDER_RESULT_BACKEND",
        kinds.RESULT_URL,
        "Where results go.",
        redacted=without_password,
    ),
    Spec(
        "queues",
        "--queue",
        "FORWARDER_QUEUES",
        kinds.QUEUES,
        "Queues to take tasks from; the flag may be repeated.",
    ),
    Spec(
        "queue_type",
        "--queue-type",
        "FORWARDER_QUEUE_TYPE",
        kinds.choice("classic", "quorum"),
        "Type of the RabbitMQ queues; without effect on other brokers.",
    ),
    Spec(
        "sqs_url",
        "--sqs-url",
        "FORWARDER_SQS_QUEUE_URL",
        kinds.SQS_QUEUE_URL,
        "URL of the existing SQS queue; it is never created.",
    ),
    Spec(
        "visibility_timeout_s",
        "--visibility-timeout",
        "FORWARDER_VISIBILITY_TIMEOUT_S",
        kinds.whole_number(2, kinds.WEEK_S),
        "Seconds that a task stays with a worker that no longer renews its lease (Redis, SQS); running tasks "
        "may take longer.",
    ),
    Spec(
        "stock_visibility_timeout_s",
        "--stock-visibility-timeout",
        "FORWARDER_STOCK_VISIBILITY_TIMEOUT_S",
        kinds.whole_number(1, kinds.WEEK_S),
        "Visibility timeout in seconds of the stock Celery workers that share the Redis database; what they "
        "left unacked is taken over only after it.",
    ),
    Spec(
        "redis_wait_s",
        "--redis-wait",
        "FORWARDER_REDIS_WAIT_S",
        kinds.seconds(1),
        "Seconds that an idle worker waits in one Redis list before it looks at all its queues and "
        "priorities: that long a task of another waits, and each look is a round trip and 1 ms of CPU.",
    ),
    Spec(
        "sqs_wait_s",
        "--sqs-wait",
        "FORWARDER_SQS_WAIT_S",
        kinds.whole_number(1, 20),
        "Seconds that one poll of SQS waits for a task: an idle worker makes 60 / N paid calls a minute. A "
        "worker that stops waits as long.",
        default_words="10; 3 where the drain timeout is below 12",
    ),
    Spec(
        "result_expires_s",
        "--result-expires",
        "FORWARDER_RESULT_EXPIRES_S",
        kinds.whole_number(1, kinds.YEAR_S),
        "Seconds for which Redis keeps a result. In S3 the bucket's life-cycle rules decide.",
    ),
    Spec(
        "track_started",
        "--track-started",
        "FORWARDER_TRACK_STARTED",
        kinds.BOOLEAN,
        "Store the state STARTED when a task begins: one more write per task.",
    ),
    Spec(
        "store_retry_s",
        "--store-retry",
        "FORWARDER_STORE_RETRY_S",
        kinds.seconds(kinds.WEEK_S, zero=True),
        "Seconds that a finished task waits in its slot for the result store before it goes back to the "
        "queue, without its result.",
    ),
    Spec(
        "max_deliveries",
        "--max-deliveries",
        "FORWARDER_MAX_DELIVERIES",
        kinds.whole_number(1, 1000),
        "Number of deliveries without an outcome after which a task fails and is put aside in the dead "
        "letters.",
    ),
    Spec(
        "message_bytes_max",
        "--message-bytes-max",
        "FORWARDER_MESSAGE_BYTES_MAX",
        kinds.whole_number(1, 2**32),
        "Bytes that a task's message may have; a larger one is put aside in the dead letters. Each costs "
        "five bytes of memory in every slot, at most.",
    ),
)
