"""Settings of what is around the tasks: hooks, the endpoint's identity, operation."""

from __future__ import annotations

from forwarder.settings import kinds
from forwarder.settings.redact import hidden, without_password
from forwarder.settings.spec import Spec

HOOKS = (
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

ENDPOINT = (
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

OPERATION = (
    Spec(
        "http_port",
        "--http-port",
        "FORWARDER_HTTP_PORT",
        kinds.whole_number(0, 65535),
        "Port of /livez, /readyz, /metrics and /status; 0 is off.",
    ),
    Spec(
        "http_host",
        "--http-host",
        "FORWARDER_HTTP_HOST",
        kinds.ADDRESS,
        "Address that the port is opened on; :: is every address where the machine has IPv6.",
    ),
    Spec(
        "live_stall_s",
        "--live-stall",
        "FORWARDER_LIVE_STALL_S",
        kinds.seconds(7 * 86400),
        "Seconds without a finished task, while tasks are in flight and the services are there, after which "
        "/livez is false: longer than the longest task.",
        default_words="--input-timeout, --task-timeout, --retry-slot and --store-retry, and 60 s more",
    ),
    Spec(
        "log_format",
        "--log-format",
        "FORWARDER_LOG_FORMAT",
        kinds.choice("console", "json"),
        "How log lines are written: for a person, or one JSON object a line.",
    ),
    Spec(
        "log_level",
        "--log-level",
        "FORWARDER_LOG_LEVEL",
        kinds.choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", any_case=True),
        "Least important log lines that are written.",
    ),
)
