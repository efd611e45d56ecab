"""Every setting, once: field, flag, environment name, kind, meaning.

The command line's options, ``--help``, ``.env.example`` and
``docs/settings.md`` are all made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from forwarder.settings import kinds
from forwarder.settings.redact import hidden, without_password
from forwarder.settings.spec import Spec

_WEEK_S = 7 * 24 * 3600
_YEAR_S = 365 * 24 * 3600

_BROKER = (
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
        kinds.whole_number(2, _WEEK_S),
        "Seconds that a task stays with a worker that no longer renews its lease (Redis, SQS); running tasks "
        "may take longer.",
    ),
    Spec(
        "stock_visibility_timeout_s",
        "--stock-visibility-timeout",
        "FORWARDER_STOCK_VISIBILITY_TIMEOUT_S",
        kinds.whole_number(1, _WEEK_S),
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
        kinds.whole_number(1, _YEAR_S),
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
        kinds.seconds(_WEEK_S, zero=True),
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

_POOL = (
    Spec(
        "pool",
        "--pool",
        "CELERY_WORKER_POOL",
        kinds.choice("prefork", "gevent"),
        "Processes (prefork) or greenlets (gevent).",
    ),
    Spec(
        "concurrency",
        "--concurrency",
        "FORWARDER_CONCURRENCY",
        kinds.whole_number(1, 10_000),
        "Number of tasks worked on at the same time. A slot costs up to five times the bytes of its "
        "message and response, and a connection to each service; on prefork a process of 24 MiB as well.",
        other_flags=("--num-workers",),
    ),
    Spec(
        "max_tasks_per_child",
        "--max-tasks-per-child",
        "CELERY_WORKER_MAX_TASKS_PER_CHILD",
        kinds.whole_number(1, 1_000_000_000),
        "Number of tasks after which a prefork process is replaced; a bad value counts as off.",
        gentle=True,
        default_words="off",
    ),
    Spec(
        "max_memory_per_child_mb",
        "--max-memory-per-child-mb",
        "FORWARDER_MAX_MEMORY_PER_CHILD_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that a prefork process may have had resident at its peak, what it shares "
        "included; with more it is replaced after its task.",
        default_words="off; with --autoscale, what each of MIN processes may have",
    ),
    Spec(
        "drain_timeout_s",
        "--drain-timeout",
        "FORWARDER_DRAIN_TIMEOUT_S",
        kinds.seconds(_WEEK_S),
        "Seconds that running tasks are given to finish when the worker is told to stop. What still runs "
        "then goes back to the queue, and its inference call is made again.",
    ),
    Spec(
        "termination_grace_s",
        "--termination-grace",
        "FORWARDER_TERMINATION_GRACE_S",
        kinds.seconds(_WEEK_S),
        "Seconds between the order to stop and the kill: Kubernetes' terminationGracePeriodSeconds, less "
        "what a preStop hook takes. Only compared with the drain timeout.",
        default_words="not compared",
    ),
    Spec(
        "autoscale",
        "--autoscale",
        "FORWARDER_AUTOSCALE",
        kinds.AUTOSCALE,
        "Largest and smallest size of the pool; with it --concurrency has no effect. Prefork starts with MIN "
        "processes and grows as far as memory allows.",
        default_words="off",
    ),
    Spec(
        "autoscale_step",
        "--autoscale-step",
        "FORWARDER_AUTOSCALE_STEP",
        kinds.whole_number(1, 10_000),
        "Number of prefork processes that are started at a time; the worker takes no message meanwhile, "
        "some 10 ms for each.",
    ),
    Spec(
        "autoscale_idle_s",
        "--autoscale-idle",
        "FORWARDER_AUTOSCALE_IDLE_S",
        kinds.seconds(_WEEK_S),
        "Seconds for which two or more prefork processes have been idle before one of them is ended.",
    ),
    Spec(
        "memory_low_percent",
        "--memory-low-percent",
        "FORWARDER_MEMORY_LOW_PERCENT",
        kinds.whole_number(1, 100),
        "Part of the memory limit in percent from which on the pool no longer grows.",
    ),
    Spec(
        "memory_high_percent",
        "--memory-high-percent",
        "FORWARDER_MEMORY_HIGH_PERCENT",
        kinds.whole_number(1, 100),
        "Part of the memory limit in percent above which the pool shrinks; it is never given more processes "
        "than fit below.",
    ),
    Spec(
        "memory_limit_mb",
        "--memory-limit-mb",
        "FORWARDER_MEMORY_LIMIT_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that the worker may fill.",
        other_environ=("CONTAINER_MEMORY_MB",),
        default_words="the container's own limit",
    ),
    Spec(
        "worker_rss_mb",
        "--worker-rss-mb",
        "FORWARDER_WORKER_RSS_MB",
        kinds.whole_number(1, 100_000_000),
        "Memory in MB (2^20 bytes) that one more prefork process needs.",
        other_environ=("EST_WORKER_RSS_MB",),
        default_words="measured",
    ),
)

_INFERENCE = (
    Spec(
        "predict_url",
        "--predict-url",
        "FORWARDER_PREDICT_URL",
        kinds.HTTP_URL,
        "Where the inference server takes requests.",
        redacted=without_password,
    ),
    Spec(
        "health_url",
        "--health-url",
        "FORWARDER_HEALTH_URL",
        kinds.HTTP_URL,
        "Where the inference server tells that it is ready; no task is taken before.",
        redacted=without_password,
    ),
    Spec(
        "connect_timeout_s",
        "--connect-timeout",
        "FORWARDER_CONNECT_TIMEOUT_S",
        kinds.seconds(_WEEK_S),
        "Seconds to wait for a connection to the inference server.",
    ),
    Spec(
        "read_timeout_s",
        "--read-timeout",
        "FORWARDER_READ_TIMEOUT_S",
        kinds.seconds(_WEEK_S),
        "Seconds to wait for the inference server's next bytes.",
        default_words="as long as the task timeout",
    ),
    Spec(
        "task_timeout_s",
        "--task-timeout",
        "FORWARDER_TASK_TIMEOUT_S",
        kinds.seconds(_WEEK_S),
        "Seconds that one inference call may take in all; on SQS at most 43200 less the visibility timeout.",
    ),
    Spec(
        "response_bytes_max",
        "--response-bytes-max",
        "FORWARDER_RESPONSE_BYTES_MAX",
        kinds.whole_number(1, 2**32),
        "Bytes that the inference server's answer may have. Each costs five bytes of memory in every slot, "
        "at most.",
    ),
    Spec(
        "inflight_bytes_max",
        "--inflight-bytes-max",
        "FORWARDER_INFLIGHT_BYTES_MAX",
        kinds.whole_number(1, 2**40),
        "Bytes that the messages that are worked on may have together, on gevent with their responses; past "
        "it no more are taken, but one by one. A byte costs about five bytes of memory.",
        default_words="a tenth of the memory limit",
    ),
    Spec(
        "retry_slot_s",
        "--retry-slot",
        "FORWARDER_RETRY_SLOT_S",
        kinds.seconds(_WEEK_S, zero=True),
        "Seconds that a task may wait for another try in its slot before it goes back to the queue.",
    ),
    Spec(
        "max_retries",
        "--max-retries",
        "FORWARDER_MAX_RETRIES",
        kinds.whole_number(0, 100_000),
        "Number of times that a task goes back to the queue before it fails.",
    ),
    Spec(
        "unwrap_payload",
        "--unwrap-payload",
        "FORWARDER_UNWRAP_PAYLOAD",
        kinds.BOOLEAN,
        "Send what stands under the payload's args, not the whole payload.",
    ),
    Spec(
        "wrap_response",
        "--wrap-response",
        "FORWARDER_WRAP_RESPONSE",
        kinds.BOOLEAN,
        'Put the response under "result" in the task\'s result.',
    ),
    Spec(
        "status_in_body",
        "--status-in-body",
        "FORWARDER_STATUS_IN_BODY",
        kinds.BOOLEAN,
        'Put the HTTP status under "status_code" in the task\'s result.',
    ),
    Spec(
        "serialize_results_as_string",
        "--serialize-results-as-string",
        "FORWARDER_SERIALIZE_RESULTS_AS_STRING",
        kinds.BOOLEAN,
        "Store the response as a string of JSON, not as JSON.",
    ),
)

#: In one PUT: https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
_S3_PUT_BYTES_MAX = 5 * 1024**3

_LARGE_BODIES = (
    Spec(
        "input_schemes",
        "--input-schemes",
        "FORWARDER_INPUT_SCHEMES",
        kinds.SCHEMES,
        "Schemes that a payload's url may have.",
    ),
    Spec(
        "input_allow",
        "--input-allow",
        "FORWARDER_INPUT_ALLOW",
        kinds.ADDRESS_PATTERNS,
        "Hosts and networks that https:// inputs may come from. A host pattern lets public addresses "
        "through; for others their network must be listed too.",
    ),
    Spec(
        "input_bytes_max",
        "--input-bytes-max",
        "FORWARDER_INPUT_BYTES_MAX",
        kinds.whole_number(1, 2**43),
        "Bytes that a body by reference may have.",
    ),
    Spec(
        "input_timeout_s",
        "--input-timeout",
        "FORWARDER_INPUT_TIMEOUT_S",
        kinds.seconds(_WEEK_S),
        "Seconds in which a body by reference must have been read, the wait for room on the disk included.",
    ),
    Spec(
        "destination_bytes_max",
        "--destination-bytes-max",
        "FORWARDER_DESTINATION_BYTES_MAX",
        kinds.whole_number(1, _S3_PUT_BYTES_MAX),
        "Bytes that the inference server's answer may have where it goes to a destination_path.",
    ),
    Spec(
        "stage_folder",
        "--stage-folder",
        "FORWARDER_STAGE_FOLDER",
        kinds.FOLDER,
        "Where large bodies are kept while their task runs: on a disk, because on a tmpfs they would be in "
        "memory. A folder of the worker's own is made in it; workers may share it, and its bound.",
    ),
    Spec(
        "stage_bytes_max",
        "--stage-bytes-max",
        "FORWARDER_STAGE_BYTES_MAX",
        kinds.whole_number(1, 2**50),
        "Bytes of disk that large bodies may take, of all processes together; a task that needs more waits.",
    ),
    Spec(
        "stage_above_bytes",
        "--stage-above-bytes",
        "FORWARDER_STAGE_ABOVE_BYTES",
        kinds.whole_number(0, 2**32),
        "Bytes up to which a body by reference, or an answer that goes to a destination_path, stays in "
        "memory.",
    ),
)

_HOOKS = (
    Spec(
        "hooks",
        "--hooks",
        "FORWARDER_HOOKS",
        kinds.HOOKS,
        "What runs after a result was stored: logging (a Firehose record per task), callback (a POST).",
    ),
    Spec(
        "callback_url",
        "--callback-url",
        "FORWARDER_CALLBACK_URL",
        kinds.HTTP_URL,
        "Where results are posted unless the payload names another place.",
        redacted=without_password,
    ),
    Spec(
        "callback_secret",
        "--callback-secret",
        "FORWARDER_CALLBACK_SECRET",
        kinds.WEBHOOK_SECRET,
        "Key that signs callbacks (Standard Webhooks). Flags show in process lists: prefer the environment.",
        redacted=hidden,
    ),
    Spec(
        "callback_allow",
        "--callback-allow",
        "FORWARDER_CALLBACK_ALLOW",
        kinds.ADDRESS_PATTERNS,
        "Hosts and networks that callbacks may reach although their addresses are not public.",
    ),
    Spec(
        "firehose_stream",
        "--firehose-stream",
        "FORWARDER_FIREHOSE_STREAM",
        kinds.STREAM_NAME,
        "Firehose stream that the logging hook writes to.",
    ),
    Spec(
        "firehose_role_arn",
        "--firehose-role-arn",
        "FORWARDER_FIREHOSE_ROLE_ARN",
        kinds.ROLE_ARN,
        "Role that the logging hook assumes.",
        default_words="none: the ambient credentials",
    ),
    Spec(
        "firehose_max_pool_connections",
        "--firehose-max-pool-connections",
        "FIREHOSE_CLIENT_MAX_POOL_CONNECTIONS",
        kinds.whole_number(1, 10_000),
        "Connections of each process's Firehose client at most, each a descriptor; a bad value counts as the "
        "default.",
        gentle=True,
    ),
    Spec(
        "firehose_linger_s",
        "--firehose-linger",
        "FORWARDER_FIREHOSE_LINGER_S",
        kinds.seconds(10, zero=True),
        "Seconds that calls of Firehose begin apart, so that one carries up to 500 records; a task may wait "
        "so long in its slot. With 0 each record is a call of its own, milliseconds of CPU.",
        default_words="0.05 on gevent with 16 slots and more, otherwise 0",
    ),
)

_ENDPOINT = (
    Spec("endpoint_name", "--endpoint-name", "FORWARDER_ENDPOINT_NAME", kinds.WORDS, "Name of the endpoint."),
    Spec("endpoint_id", "--endpoint-id", "FORWARDER_ENDPOINT_ID", kinds.WORDS, "Id of the endpoint."),
    Spec("endpoint_type", "--endpoint-type", "FORWARDER_ENDPOINT_TYPE", kinds.WORDS, "Type of the endpoint."),
    Spec(
        "endpoint_bundle_id",
        "--endpoint-bundle-id",
        "FORWARDER_BUNDLE_ID",
        kinds.WORDS,
        "Id of the model bundle that the endpoint serves.",
    ),
    Spec(
        "endpoint_labels",
        "--endpoint-labels",
        "FORWARDER_LABELS",
        kinds.LABELS,
        "Labels of the endpoint, a JSON object of strings.",
    ),
    Spec(
        "endpoint_user_id",
        "--endpoint-user-id",
        "FORWARDER_USER_ID",
        kinds.WORDS,
        "Owner of the endpoint: the user of a callback's basic auth.",
    ),
)

_OPERATION = (
    Spec(
        "http_port",
        "--http-port",
        "FORWARDER_HTTP_PORT",
        kinds.whole_number(0, 65535),
        "Port of health and metrics; 0 is off.",
    ),
    Spec(
        "log_level",
        "--log-level",
        "FORWARDER_LOG_LEVEL",
        kinds.choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", any_case=True),
        "Least important log lines that are written.",
    ),
)

GROUPS: Mapping[str, tuple[Spec, ...]] = {
    "Broker and results": _BROKER,
    "Pool": _POOL,
    "Inference server": _INFERENCE,
    "Large bodies": _LARGE_BODIES,
    "Hooks": _HOOKS,
    "Endpoint identity": _ENDPOINT,
    "Operation": _OPERATION,
}

SPECS: tuple[Spec, ...] = tuple(spec for group in GROUPS.values() for spec in group)

BY_FIELD: Mapping[str, Spec] = {spec.field: spec for spec in SPECS}
