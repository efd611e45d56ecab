"""The ancestor's command line means what it meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from forwarder import compat
from forwarder.compat import AncestorFlags
from forwarder.settings import Resolved, Settings, SettingsError

LOCAL = {"USE_REDIS_LOCALHOST": "1", "S3_BUCKET": "bucket"}
MANIFEST: dict[str, Any] = {
    "forwarder": {
        "sync": {"whatever": "is ignored"},
        "async": {
            "user_port": 5005,
            "user_hostname": "localhost",
            "use_grpc": False,
            "predict_route": "/predict",
            "healthcheck_route": "/readyz",
            "batch_route": None,
            "model_engine_unwrap": True,
            "serialize_results_as_string": True,
            "wrap_response": True,
            "forward_http_status": False,
            "forward_http_status_in_body": True,
        },
    }
}


def resolve(
    document: Mapping[str, Any] | None = None,
    *assignments: str,
    environ: Mapping[str, str] = LOCAL,
    flags: Mapping[str, str] | None = None,
    **ancestor: Any,
) -> Resolved:
    return compat.resolve(
        MANIFEST if document is None else document,
        AncestorFlags(assignments=assignments, **ancestor),
        flags or {},
        environ,
        file_name="service--forwarder.yaml",
    )


def only(**keys: Any) -> dict[str, Any]:
    return {"forwarder": {"async": keys}}


def test_the_ancestors_manifest_becomes_its_settings() -> None:
    resolved = resolve(
        MANIFEST,
        "forwarder.async.user_port=8000",
        "forwarder.async.predict_route=/v1/predict",
        "forwarder.async.healthcheck_route=/health",
        flags={"queues": "q", "concurrency": "10"},
        task_visibility="VISIBILITY_24H",
        broker_type="redis",
        backend_protocol="s3",
    )
    assert resolved.settings == Settings(
        broker_url="redis://127.0.0.1:6379/3",
        result_backend="s3://bucket/tmp/celery/",
        queues=("q",),
        concurrency=10,
        visibility_timeout_s=60,
        stock_visibility_timeout_s=86400,
        track_started=True,
        predict_url="http://localhost:8000/v1/predict",
        health_url="http://localhost:8000/health",
        unwrap_payload=True,
        wrap_response=True,
        status_in_body=True,
        serialize_results_as_string=True,
    )
    assert resolved.warnings == ()


def test_where_each_setting_came_from_is_told() -> None:
    sources = resolve(
        MANIFEST, "forwarder.async.predict_route=/p", flags={"concurrency": "2"}, broker_type="redis"
    ).sources
    assert sources["predict_url"] == "flag --set"
    assert sources["health_url"] == "file service--forwarder.yaml"
    assert sources["broker_url"] == "environment USE_REDIS_LOCALHOST"
    assert sources["result_backend"] == "environment S3_BUCKET"
    assert sources["stock_visibility_timeout_s"] == "the ancestor's default"
    assert sources["visibility_timeout_s"] == "default"
    assert sources["concurrency"] == "flag --concurrency"
    assert sources["task_timeout_s"] == "default"


@pytest.mark.parametrize("document", [{}, only(), {"forwarder": {"async": None}}, {"forwarder": None}])
def test_what_the_file_leaves_out_is_as_the_ancestor_had_it(document: dict[str, Any]) -> None:
    assert resolve(document, broker_type="redis").settings == resolve(MANIFEST).settings


@pytest.mark.parametrize(
    ("document", "flags", "expected"),
    [
        (MANIFEST, AncestorFlags(), True),
        ({"forwarder": {"sync": {}}}, AncestorFlags(), False),
        ({"concurrency": 4}, AncestorFlags(), False),
        ({"forwarder": "async"}, AncestorFlags(), False),
        ({}, AncestorFlags(assignments=("forwarder.async.user_port=1",)), True),
        ({}, AncestorFlags(task_visibility="VISIBILITY_1H"), True),
        ({}, AncestorFlags(broker_type="sqs"), True),
        ({}, AncestorFlags(backend_protocol="s3"), True),
    ],
)
def test_the_form_is_known_by_the_file_or_by_a_flag(
    document: dict[str, Any], flags: AncestorFlags, expected: bool
) -> None:
    assert compat.is_ancestor(document, flags) is expected


@pytest.mark.parametrize(
    ("visibility", "database", "stock_visibility_timeout_s"),
    [
        ("VISIBILITY_1H", 0, 3600),
        ("VISIBILITY_10M", 1, 600),
        ("VISIBILITY_1M", 2, 60),
        ("VISIBILITY_24H", 3, 86400),
    ],
)
def test_the_visibility_decides_the_database_and_when_the_ancestors_tasks_are_taken_over(
    visibility: str, database: int, stock_visibility_timeout_s: int
) -> None:
    resolved = resolve(task_visibility=visibility)
    settings = resolved.settings
    assert settings.broker_url == f"redis://127.0.0.1:6379/{database}"
    assert settings.stock_visibility_timeout_s == stock_visibility_timeout_s
    assert resolved.sources["stock_visibility_timeout_s"] == "flag --task-visibility"
    assert resolved.warnings == ()


def test_the_visibility_changes_neither_this_workers_leases_nor_its_deadlines() -> None:
    settings, own = resolve(task_visibility="VISIBILITY_1M").settings, Settings()
    assert settings.visibility_timeout_s == own.visibility_timeout_s
    assert (settings.task_timeout_s, settings.retry_slot_s) == (own.task_timeout_s, own.retry_slot_s)


@pytest.mark.parametrize(
    ("environ", "broker_url"),
    [
        ({"USE_REDIS_LOCALHOST": "1"}, "redis://127.0.0.1:6379/3"),
        ({"REDIS_HOST": "redis"}, "redis://redis:6379/3"),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "7000"}, "redis://redis:7000/3"),
        (
            {"REDIS_HOST": "redis", "REDIS_AUTH_TOKEN": "a/b@c:d"},
            "rediss://:a%2Fb%40c%3Ad@redis:6379/3?ssl_cert_reqs=required",
        ),
        (
            {"REDIS_HOST": "redis", "REDIS_AUTH_TOKEN": "x", "USE_REDIS_LOCALHOST": "1"},
            "redis://127.0.0.1:6379/3",
        ),
    ],
)
def test_redis_comes_from_the_ancestors_environment(environ: dict[str, str], broker_url: str) -> None:
    settings = resolve(environ=environ, backend_protocol="redis").settings
    assert settings.broker_url == broker_url
    assert settings.result_backend == broker_url.replace("/3", "/1")


@pytest.mark.parametrize(
    ("broker_type", "sqs_url", "broker_url"),
    [
        (None, None, "redis://127.0.0.1:6379/3"),
        (None, "https://host/1/q", "sqs://"),
        ("sqs", "https://host/1/q", "sqs://"),
        ("redis", "https://host/1/q", "redis://127.0.0.1:6379/3"),
        (None, "", "redis://127.0.0.1:6379/3"),
    ],
)
def test_the_broker_is_sqs_where_its_url_is_given(
    broker_type: str | None, sqs_url: str | None, broker_url: str
) -> None:
    ancestor: dict[str, Any] = {} if broker_type is None else {"broker_type": broker_type}
    flags = {} if sqs_url is None else {"sqs_url": sqs_url}
    assert resolve(flags=flags, **ancestor).settings.broker_url == broker_url


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("model_engine_unwrap", "unwrap_payload"),
        ("serialize_results_as_string", "serialize_results_as_string"),
        ("wrap_response", "wrap_response"),
        ("forward_http_status_in_body", "status_in_body"),
    ],
)
def test_each_switch_turns_its_own_setting(key: str, field: str) -> None:
    for value in (True, False):
        assert getattr(resolve(only(**{key: value})).settings, field) is value
    assert getattr(resolve(only(), f"forwarder.async.{key}=false").settings, field) is False


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False)])
def test_the_environment_overrides_the_files_string_results(text: str, expected: bool) -> None:
    environ = LOCAL | {"SERIALIZE_RESULTS_AS_STRING": text}
    document = only(serialize_results_as_string=not expected)
    assert resolve(document, environ=environ).settings.serialize_results_as_string is expected


def test_an_unreadable_string_results_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(SettingsError, match="environment SERIALIZE_RESULTS_AS_STRING"):
        resolve(environ=LOCAL | {"SERIALIZE_RESULTS_AS_STRING": "maybe"})


def test_this_workers_own_flags_and_variables_win() -> None:
    resolved = resolve(
        environ={"FORWARDER_RESULT_BACKEND": "redis://results/5", "FORWARDER_WRAP_RESPONSE": "false"},
        flags={
            "broker_url": "amqp://host//",
            "predict_url": "http://other:1/p",
            "track_started": "false",
            "stock_visibility_timeout_s": "7",
        },
        task_visibility="VISIBILITY_1M",
    )
    settings = resolved.settings
    assert settings.broker_url == "amqp://host//"
    assert settings.result_backend == "redis://results/5"
    assert settings.predict_url == "http://other:1/p"
    assert settings.wrap_response is False
    assert settings.track_started is False
    assert settings.stock_visibility_timeout_s == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5005", 5005),
        ("-1", "-1"),
        ("1.5", "1.5"),
        ("[1, 'a']", [1, "a"]),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("/predict", "/predict"),
        pytest.param("9" * 5000, "9" * 5000, id="more digits than int takes"),
    ],
)
def test_an_assigned_value_is_read_as_the_ancestor_read_it(text: str, value: Any) -> None:
    document, paths = compat._assign({}, [f"a.b={text}"])
    assert document == {"a": {"b": value}}
    assert paths == {"a.b"}


def test_assigning_leaves_the_document_as_it_was() -> None:
    document = only(user_port=1)
    compat._assign(document, ["forwarder.async.user_port=2"])
    assert document == only(user_port=1)


@pytest.mark.parametrize(
    "assignment",
    ["", "forwarder", "=1", "a=b=c", "a..b=1", ".a=1", "forwarder.async.user_port.x=1", "a=[,]", "a=[open]"],
)
def test_a_bad_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        resolve(only(user_port=5005), assignment)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user_port", 0),
        ("user_port", 65536),
        ("user_port", "5005"),
        ("user_port", True),
        ("user_port", None),
        ("user_hostname", ""),
        ("user_hostname", "a b"),
        ("user_hostname", "user@host"),
        ("user_hostname", 1),
        ("predict_route", "predict"),
        ("predict_route", None),
        ("healthcheck_route", "readyz"),
        ("use_grpc", True),
        ("batch_route", "/batch"),
        ("forward_http_status", True),
        ("model_engine_unwrap", "yes"),
        ("wrap_response", None),
        ("forward_http_status_in_body", 1),
        ("user_prot", 5005),
        ("zzz", 1),
    ],
)
def test_a_bad_key_of_the_file_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(SettingsError) as refused:
        resolve(only(**{key: value}))
    assert key in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "document", [{"forwarder": 1}, {"forwarder": ["async"]}, {"forwarder": {"async": 1}}]
)
def test_a_file_of_another_shape_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="configuration file"):
        resolve(document, broker_type="redis")


@pytest.mark.parametrize(
    ("environ", "ancestor", "named"),
    [
        ({"S3_BUCKET": "bucket"}, {}, "REDIS_HOST"),
        ({"USE_REDIS_LOCALHOST": "1"}, {}, "S3_BUCKET"),
        ({"USE_REDIS_LOCALHOST": "1", "S3_BUCKET": "ab"}, {}, "S3_BUCKET"),
        ({"REDIS_HOST": "a b", "S3_BUCKET": "bucket"}, {}, "REDIS_HOST"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "x", "S3_BUCKET": "bucket"}, {}, "REDIS_PORT"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "65536", "S3_BUCKET": "bucket"}, {}, "REDIS_PORT"),
        (LOCAL, {"task_visibility": "VISIBILITY_2H"}, "--task-visibility"),
        (LOCAL, {"broker_type": "rabbitmq"}, "--broker-type"),
        (LOCAL, {"backend_protocol": "abs"}, "--backend-protocol"),
        (LOCAL, {"broker_type": "sqs"}, "--sqs-url"),
    ],
)
def test_what_the_ancestor_needs_and_does_not_get_is_named(
    environ: dict[str, str], ancestor: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        resolve(environ=environ, **ancestor)


def test_the_token_of_redis_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        resolve(environ={"REDIS_HOST": "a b", "REDIS_AUTH_TOKEN": "hunter2", "S3_BUCKET": "bucket"})
    assert "hunter2" not in str(refused.value)


def test_keys_that_nobody_reads_are_pointed_out() -> None:
    document = {"concurrency": 4, "forwarder": {"async": {}, "sync": {}, "asink": {}}}
    assert resolve(document).warnings == (
        "concurrency in the configuration file is ignored",
        "forwarder.asink in the configuration file is ignored",
    )
