"""Precedence, provenance, and what each source may look like."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from forwarder.settings import Settings, SettingsError, resolve
from forwarder.settings.spec import value_of
from forwarder.settings.table import BY_FIELD, SPECS

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"

#: Field to text as a flag or a variable gives it, and to the typed value.
GOOD: dict[str, list[tuple[str, Any]]] = {
    "broker_url": [
        ("redis://host:1/2", "redis://host:1/2"),
        ("amqp://user:pw@host:5672/vhost", "amqp://user:pw@host:5672/vhost"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss://host/0", "rediss://host/0?ssl_cert_reqs=required"),
        ("rediss://host/0?ssl_cert_reqs=none", "rediss://host/0?ssl_cert_reqs=none"),
    ],
    "result_backend": [("s3://bucket/a/b/", "s3://bucket/a/b/"), ("s3://abc", "s3://abc")],
    "queues": [("a", ("a",)), ("a, b:c", ("a", "b:c"))],
    "queue_type": [("quorum", "quorum")],
    "redis_wait_s": [("0.1", 0.1), ("1", 1.0)],
    "sqs_wait_s": [("20", 20), ("", None)],
    "firehose_linger_s": [("0", 0.0), ("0.2", 0.2), ("", None)],
    "sqs_url": [("http://127.0.0.1:5000/1/q", "http://127.0.0.1:5000/1/q"), ("", None)],
    "visibility_timeout_s": [("2", 2)],
    "stock_visibility_timeout_s": [("7200", 7200)],
    "result_expires_s": [("1", 1)],
    "track_started": [("true", True), ("YES", True), ("1", True), ("0", False), ("no", False)],
    "store_retry_s": [("0", 0.0)],
    "max_deliveries": [("3", 3)],
    "message_bytes_max": [("1048576", 1048576)],
    "pool": [("gevent", "gevent")],
    "concurrency": [("50", 50)],
    "max_tasks_per_child": [("100", 100), ("", None)],
    "max_memory_per_child_mb": [("300", 300), ("", None)],
    "drain_timeout_s": [("0.5", 0.5)],
    "termination_grace_s": [("60", 60.0), ("", None)],
    "autoscale": [("8,1", (8, 1)), ("2, 2", (2, 2)), ("", None)],
    "autoscale_step": [("2", 2)],
    "autoscale_idle_s": [("5", 5.0)],
    "memory_low_percent": [("40", 40)],
    "memory_high_percent": [("80", 80)],
    "memory_limit_mb": [("4096", 4096)],
    "worker_rss_mb": [("200", 200)],
    "predict_url": [("https://host/v1?x=1", "https://host/v1?x=1")],
    "health_url": [("http://host", "http://host")],
    "connect_timeout_s": [("1.5", 1.5)],
    "read_timeout_s": [("2", 2.0), ("", None)],
    "task_timeout_s": [("1e2", 100.0)],
    "response_bytes_max": [("1024", 1024)],
    "inflight_bytes_max": [("1024", 1024), ("", None)],
    "retry_slot_s": [("0", 0.0)],
    "max_retries": [("0", 0)],
    "unwrap_payload": [("false", False)],
    "wrap_response": [("false", False)],
    "status_in_body": [("false", False)],
    "serialize_results_as_string": [("true", True)],
    "input_schemes": [("s3", ("s3",)), ("https, s3", ("https", "s3"))],
    "input_allow": [("*.example.com,10.0.0.0/8", ("*.example.com", "10.0.0.0/8")), ("", ())],
    "input_bytes_max": [("1024", 1024)],
    "input_timeout_s": [("2.5", 2.5)],
    "destination_bytes_max": [("1024", 1024)],
    "stage_folder": [("/var/lib/a b", "/var/lib/a b")],
    "stage_bytes_max": [("1099511627776", 2**40)],
    "stage_above_bytes": [("0", 0)],
    "hooks": [("callback", ("callback",)), ("", ())],
    "callback_url": [("https://host/hook", "https://host/hook")],
    "callback_secret": [(SECRET, SECRET)],
    "callback_allow": [
        ("*.example.com,10.0.0.0/8,fd00::/8", ("*.example.com", "10.0.0.0/8", "fd00::/8")),
        ("::1,127.0.0.1", ("::1", "127.0.0.1")),
    ],
    "firehose_stream": [("a.b-c_1", "a.b-c_1")],
    "firehose_role_arn": [
        ("arn:aws:iam::123456789012:role/path/name", "arn:aws:iam::123456789012:role/path/name"),
        ("arn:aws-cn:iam::123456789012:role/r", "arn:aws-cn:iam::123456789012:role/r"),
    ],
    "firehose_max_pool_connections": [("10", 10)],
    "endpoint_name": [("größer", "größer")],
    "endpoint_id": [("end_1", "end_1")],
    "endpoint_type": [("async", "async")],
    "endpoint_bundle_id": [("bun_1", "bun_1")],
    "endpoint_labels": [('{"team": "search"}', {"team": "search"}), ("", {})],
    "endpoint_user_id": [("user", "user")],
    "auto": [("true", True)],
    "http_port": [("8080", 8080)],
    "http_host": [("127.0.0.1", "127.0.0.1"), ("::", "::")],
    "live_stall_s": [("90", 90.0)],
    "log_format": [("json", "json")],
    "log_level": [("debug", "DEBUG")],
}
CASES = [(field, text, value) for field, pairs in GOOD.items() for text, value in pairs]


def test_every_setting_has_a_value_that_works() -> None:
    assert set(GOOD) == set(BY_FIELD)


@pytest.mark.parametrize(
    ("flags", "bounds", "source"),
    [
        ({"auto": "true"}, (128, 4), "--auto"),
        ({"auto": "true", "concurrency": "300"}, (300, 300), "--auto"),
        ({"auto": "true", "autoscale": "9,3"}, (9, 3), "flag --autoscale"),
        ({"auto": "false"}, None, "default"),
    ],
)
def test_auto_scales_from_the_operators_own_number(
    flags: dict[str, str], bounds: tuple[int, int] | None, source: str
) -> None:
    resolved = resolve(flags, {}, {})
    assert (resolved.settings.autoscale, resolved.sources["autoscale"]) == (bounds, source)


@pytest.mark.parametrize(("field", "text", "value"), CASES)
def test_a_flag_is_read_into_its_type(field: str, text: str, value: Any) -> None:
    resolved = resolve({field: text}, {}, {})
    assert value_of(resolved.settings, field) == value
    assert resolved.sources[field] == f"flag {BY_FIELD[field].flag}"


@pytest.mark.parametrize(("field", "text", "value"), [case for case in CASES if case[1]])
def test_a_variable_is_read_into_its_type(field: str, text: str, value: Any) -> None:
    name = BY_FIELD[field].environ
    resolved = resolve({}, {name: text}, {})
    assert value_of(resolved.settings, field) == value
    assert resolved.sources[field] == f"environment {name}"


@pytest.mark.parametrize(("field", "text", "value"), [case for case in CASES if case[1]])
def test_a_file_may_hold_the_text_or_the_typed_value(field: str, text: str, value: Any) -> None:
    typed = list(value) if isinstance(value, tuple) else value
    for content in (text, typed):
        resolved = resolve({}, {}, {field: content}, file_sources={field: "file f.yaml"})
        assert value_of(resolved.settings, field) == value
        assert resolved.sources[field] == "file f.yaml"


def test_nothing_given_is_the_defaults_without_a_warning() -> None:
    resolved = resolve({}, {}, {})
    assert resolved.settings == Settings()
    assert set(resolved.sources.values()) == {"default"}
    assert resolved.warnings == ()


def test_every_field_of_settings_can_be_set() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"endpoint"}
    assert fields == {spec.field for spec in SPECS if not spec.field.startswith("endpoint_")}


def test_flag_wins_over_environment_over_file_over_default() -> None:
    flags, environ, file = {"concurrency": "1"}, {"FORWARDER_CONCURRENCY": "2"}, {"concurrency": 3}
    assert resolve(flags, environ, file).settings.concurrency == 1
    assert resolve({}, environ, file).settings.concurrency == 2
    assert resolve({}, {}, file).settings.concurrency == 3
    assert resolve({}, {}, {}).settings.concurrency == 4


def test_a_wrong_value_that_another_source_overrides_is_not_looked_at() -> None:
    assert resolve({"concurrency": "1"}, {"FORWARDER_CONCURRENCY": "x"}, {}).settings.concurrency == 1


def test_a_repeated_flag_and_a_comma_list_mean_the_same() -> None:
    assert resolve({"queues": ("a", "b")}, {}, {}) == resolve({"queues": "a,b"}, {}, {})


def test_an_empty_variable_counts_as_not_set() -> None:
    resolved = resolve({}, {"FORWARDER_CONCURRENCY": "", "FORWARDER_SQS_QUEUE_URL": ""}, {"concurrency": 3})
    assert resolved.settings.concurrency == 3
    assert resolved.sources["sqs_url"] == "default"


def test_null_in_a_file_counts_as_not_set() -> None:
    assert resolve({}, {}, {"read_timeout_s": None}).sources["read_timeout_s"] == "default"


@pytest.mark.parametrize(
    ("names", "value"),
    [
        ({"CONTAINER_MEMORY_MB": "100"}, 100),
        ({"CONTAINER_MEMORY_MB": "100", "FORWARDER_MEMORY_LIMIT_MB": "200"}, 200),
    ],
)
def test_a_second_name_is_read_where_the_first_is_silent(names: dict[str, str], value: int) -> None:
    assert resolve({}, names, {}).settings.memory_limit_mb == value


@pytest.mark.parametrize(
    ("key", "hint"), [("concurency", "did you mean concurrency?"), ("zzz", "docs/settings.md")]
)
def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_name(key: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"{key}.*{hint.replace('?', '[?]')}"):
        resolve({}, {}, {key: 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurrency", True),
        ("concurrency", 4.0),
        ("concurrency", [4]),
        ("queues", [["a"]]),
        ("queues", {"a": 1}),
        ("track_started", "on"),
        ("pool", ["gevent"]),
        ("endpoint_labels", ["a"]),
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_is_refused(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match="file"):
        resolve({}, {}, {field: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FORWARDER_QUEUE", "FORWARDER_QUEUES"),
        ("FORWARDER_ENDPOINT_LABELS", "FORWARDER_LABELS"),  # by the field's name, endpoint_labels
        ("FORWARDER_POOL", "CELERY_WORKER_POOL"),
        ("FORWARDER_SQS_URL", "FORWARDER_SQS_QUEUE_URL"),
    ],
)
def test_a_misspelt_variable_is_pointed_out(name: str, meant: str) -> None:
    (warning,) = resolve({}, {name: "a"}, {}).warnings
    assert warning == f"{name} is not a setting; did you mean {meant}?"


def test_the_variables_of_a_kubernetes_service_called_forwarder_are_not() -> None:
    environ = {
        "FORWARDER_PORT": "tcp://10.0.0.1:80",
        "FORWARDER_PORT_80_TCP_ADDR": "10.0.0.1",
        "FORWARDER_SERVICE_HOST": "10.0.0.1",
        "FORWARDER_SERVICE_PORT_HTTP": "80",
    }
    assert resolve({}, environ, {}).warnings == ()


def test_neither_settings_nor_what_they_hold_show_a_secret_in_their_repr() -> None:
    flags = {
        "broker_url": "redis://:hunter2@host/0",
        "result_backend": "redis://:hunter3@host/1",
        "callback_secret": SECRET,
    }
    shown = repr(resolve(flags, {}, {}))
    assert "hunter" not in shown
    assert SECRET not in shown
