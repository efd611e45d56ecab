"""Every setting wrong in turn: exit code 2 and one line that says what, which value, and what would work."""

from __future__ import annotations

import pytest

from forwarder.cli.main import main
from forwarder.settings import SettingsError, resolve
from forwarder.settings.table import BY_FIELD, SPECS

SHORT_SECRET = "whsec_c2hvcnQ="
NOT_BASE64 = "whsec_not base64 at all, but long enough to be a secret"
GOOD_KEY_WITHOUT_PREFIX = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"

NUMBERS = ["x", "1.5", "1e3", "", "-1", "0x10", "1_000", " 5", "٣", "9" * 30]
DURATIONS = ["x", "-1", "nan", "inf", "-inf", "1_0", "1s", "1e99"]
BOOLEANS = ["maybe", "2", "on", "off", "tru"]
URLS = [
    "localhost:5005",
    "http://",
    "/predict",
    "ftp://host/",
    "http://host:x/",
    "http://host:70000/",
    "http://a b/",
]
CREDENTIALS_IN_URL = [
    "http://user:hunter2@host/",
    "http://user@host/",
    "https://:hunter2@host/",
    "http://@host/",
]
WORDS = ["tab\there", "line\nbreak", "   "]

WRONG: dict[str, list[str]] = {
    "broker_url": [
        *URLS,
        "http://host/",
        "redis://",
        "redis://host/name",
        "sqs://host",
        "memory://x",
        "s3://bucket/",
    ],
    "result_backend": [
        *URLS,
        "amqp://host//",
        "s3://",
        "s3://ab/",
        "s3://Upper/",
        "s3://bucket?x=1",
        "rpc://",
    ],
    "queues": ["a b", "a,,b", ",", "a,a", "a\nb", "a,", 'a"b', "[a]", ""],
    "queue_type": ["stream", "Quorum", ""],
    "redis_wait_s": [*DURATIONS, "0", "1.1", ""],
    "sqs_wait_s": [*[value for value in NUMBERS if value], "0", "21"],
    "firehose_linger_s": [*DURATIONS, "11"],
    "sqs_url": ["queue", "https://sqs.us-east-1.amazonaws.com", "https:///1/name", "sqs://host/1/name"],
    "visibility_timeout_s": [*NUMBERS, "0", "1", "604801"],
    "stock_visibility_timeout_s": [*NUMBERS, "0", "604801"],
    "result_expires_s": [*NUMBERS, "0"],
    "track_started": [*BOOLEANS, ""],
    "store_retry_s": [*DURATIONS, "604801", ""],
    "max_deliveries": [*NUMBERS, "0", "1001"],
    "message_bytes_max": [*NUMBERS, "0", "4294967297"],
    "pool": ["solo", "threads", "eventlet", "GEVENT", "bogus", ""],
    "concurrency": [*NUMBERS, "0", "10001"],
    "drain_timeout_s": [*DURATIONS, "0", ""],
    "termination_grace_s": [*DURATIONS, "0"],
    "autoscale": ["4", "2,4", "4,0", "a,b", "4,2,1", "-4,-5", "4;2"],
    "auto": [*BOOLEANS, ""],
    "autoscale_step": [*NUMBERS, "0", "10001"],
    "autoscale_idle_s": [*DURATIONS, "0", ""],
    "memory_low_percent": [*NUMBERS, "0", "101"],
    "memory_high_percent": [*NUMBERS, "0", "19", "101"],
    "max_memory_per_child_mb": ["x", "0", "-1", "1.5"],
    "memory_limit_mb": ["x", "0", "-1", "1.5", "2GB"],
    "worker_rss_mb": ["x", "0", "-1", "1.5"],
    "predict_url": [*URLS, *CREDENTIALS_IN_URL, ""],
    "health_url": [*URLS, *CREDENTIALS_IN_URL, ""],
    "connect_timeout_s": [*DURATIONS, "0", ""],
    "read_timeout_s": [*DURATIONS, "0"],
    "task_timeout_s": [*DURATIONS, "0", "", "604801"],
    "response_bytes_max": [*NUMBERS, "0", "4294967297"],
    "inflight_bytes_max": ["x", "0", "-1", "1.5", "1099511627777"],
    "retry_slot_s": [*DURATIONS, ""],
    "max_retries": [*NUMBERS],
    "unwrap_payload": BOOLEANS,
    "wrap_response": BOOLEANS,
    "status_in_body": BOOLEANS,
    "serialize_results_as_string": BOOLEANS,
    "input_schemes": ["http", "s3,http", "s3,s3", "S3", ",", ""],
    "input_allow": ["10.0.0.0/33", "10.0.0.1/8", "a b", "host/path", "https://host", "a,,b"],
    "input_bytes_max": [*NUMBERS, "0", str(2**43 + 1)],
    "input_timeout_s": [*DURATIONS, "0", "", "604801"],
    "destination_bytes_max": [*NUMBERS, "0", "5368709121"],
    "stage_folder": ["", "tmp", "./tmp", "/a\nb"],
    "stage_bytes_max": [*NUMBERS, "0", str(2**50 + 1)],
    "stage_above_bytes": [*NUMBERS, str(2**32 + 1)],
    "hooks": ["log", "logging,log", "logging,logging", ",", "LOGGING"],
    "callback_url": [*URLS, *CREDENTIALS_IN_URL],
    "callback_secret": [SHORT_SECRET, NOT_BASE64, GOOD_KEY_WITHOUT_PREFIX, "whsec_"],
    "callback_allow": ["10.0.0.0/33", "10.0.0.1/8", "a b", "host/path", "https://host", "a,,b", "fd00::/129"],
    "firehose_stream": ["a b", "x" * 65, "arn:aws:firehose:us-east-1:1:deliverystream/s"],
    "firehose_role_arn": [
        "role",
        "arn:aws:iam::12345:role/r",
        "arn:aws:iam::123456789012:user/u",
        "arn:aws:s3:::bucket",
        "arn:aws:iam::123456789012:role/",
    ],
    "endpoint_name": WORDS,
    "endpoint_id": WORDS,
    "endpoint_type": WORDS,
    "endpoint_bundle_id": WORDS,
    "endpoint_labels": ["team", "[]", '{"a": 1}', '{"a": null}', '{"a": {}}', "{", '"text"', "[" * 100_000],
    "endpoint_user_id": WORDS,
    "http_port": [*NUMBERS, "65536"],
    "http_host": ["localhost", "127.0.0", "127.0.0.1:80", "*", ""],
    "live_stall_s": [*DURATIONS, "0", "604801"],
    "log_format": ["JSON", "text", ""],
    "log_level": ["LOUD", "10", ""],
}
GENTLE = {
    "max_tasks_per_child": ["x", "0", "-1", "1.5", "nan"],
    "firehose_max_pool_connections": ["x", "0", "-1", "1.5", "10001"],
}
CASES = [
    pytest.param(field, value, id=f"{field}={value[:40]}")
    for field, values in WRONG.items()
    for value in values
]


def test_every_setting_stands_in_one_of_the_two_tables() -> None:
    assert {*WRONG, *GENTLE} == set(BY_FIELD)


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(field: str, value: str) -> None:
    spec = BY_FIELD[field]
    with pytest.raises(SettingsError) as refused:
        resolve({field: value}, {}, {})
    line = str(refused.value)
    assert spec.flag in line
    assert spec.environ in line
    assert spec.kind.accepted in line
    assert "\n" not in line
    assert refused.value.value == spec.redacted(value)
    assert len(line) < 500


@pytest.mark.parametrize("field", WRONG)
def test_the_environment_is_held_to_the_same_rules(field: str) -> None:
    value = next(value for value in WRONG[field] if value)
    with pytest.raises(SettingsError):
        resolve({}, {BY_FIELD[field].environ: value}, {})


@pytest.mark.parametrize("field", WRONG)
def test_the_command_line_ends_with_2_and_one_line(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = BY_FIELD[field]
    value = WRONG[field][0]
    assert main(["check", f"{spec.flag}={value}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert spec.flag in err


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in GENTLE for value in GENTLE[field]])
def test_the_two_gentle_settings_warn_and_go_on_with_the_default(field: str, value: str) -> None:
    spec = BY_FIELD[field]
    resolved = resolve({}, {spec.environ: value}, {})
    assert getattr(resolved.settings, field) == spec.default
    assert resolved.sources[field] == "default"
    (warning,) = resolved.warnings
    assert spec.environ in warning
    assert repr(value) in warning


@pytest.mark.parametrize("value", [SHORT_SECRET, NOT_BASE64, GOOD_KEY_WITHOUT_PREFIX])
def test_a_refused_secret_is_not_repeated(value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        resolve({"callback_secret": value}, {}, {})
    assert value not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_refused_url_is_shown_without_its_password() -> None:
    with pytest.raises(SettingsError) as refused:
        resolve({"broker_url": "redis://user:hunter2@host:port/0"}, {}, {})
    assert "hunter2" not in str(refused.value)
    assert "host:port" in str(refused.value)


def test_a_refused_url_with_user_and_password_says_what_to_leave_out() -> None:
    with pytest.raises(SettingsError, match="without user and password") as refused:
        resolve({"predict_url": "http://user:hunter2@host/predict"}, {}, {})
    assert "hunter2" not in str(refused.value)


def test_no_two_settings_share_a_flag_or_an_environment_name() -> None:
    flags = [flag for spec in SPECS for flag in (spec.flag, *spec.other_flags)]
    names = [name for spec in SPECS for name in (spec.environ, *spec.other_environ)]
    assert len(set(flags)) == len(flags)
    assert len(set(names)) == len(names)
