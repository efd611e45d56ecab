"""Settings of the inference server, and of bodies that are too large for memory."""

from __future__ import annotations

from forwarder.settings import kinds
from forwarder.settings.redact import without_password
from forwarder.settings.spec import Spec

INFERENCE = (
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
        kinds.seconds(kinds.WEEK_S),
        "Seconds to wait for a connection to the inference server.",
    ),
    Spec(
        "read_timeout_s",
        "--read-timeout",
        "FORWARDER_READ_TIMEOUT_S",
        kinds.seconds(kinds.WEEK_S),
        "Seconds to wait for the inference server's next bytes.",
        default_words="as long as the task timeout",
    ),
    Spec(
        "task_timeout_s",
        "--task-timeout",
        "FORWARDER_TASK_TIMEOUT_S",
        kinds.seconds(kinds.WEEK_S),
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
        kinds.seconds(kinds.WEEK_S, zero=True),
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

LARGE_BODIES = (
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
        kinds.seconds(kinds.WEEK_S),
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
