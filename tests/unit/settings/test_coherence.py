"""Settings that do not fit together."""

from __future__ import annotations

import pytest

from forwarder.settings import SettingsError, resolve
from forwarder.settings.coherence import ENDING_S, SQS_HELD_S_MAX

SQS = {"broker_url": "sqs://", "sqs_url": "https://host/1/name"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"broker_url": "sqs://"}, "--sqs-url"),
        ({**SQS, "queues": "a,b"}, "--queue"),
        ({"hooks": "logging"}, "--firehose-stream"),
        ({**SQS, "visibility_timeout_s": "43201"}, "--visibility-timeout"),
        ({**SQS, "visibility_timeout_s": "43200"}, "--task-timeout"),  # no lease could ever be renewed
        ({**SQS, "task_timeout_s": "43140.5"}, "--task-timeout"),
        ({"termination_grace_s": "10"}, "--termination-grace"),
        ({"termination_grace_s": "30"}, "--drain-timeout"),  # Kubernetes' default, and our own
        ({"termination_grace_s": "60", "drain_timeout_s": "50.5"}, "--drain-timeout"),
        (
            {"stage_bytes_max": "19", "input_bytes_max": "10", "destination_bytes_max": "10"},
            "--stage-bytes-max",
        ),
    ],
)
def test_settings_that_can_not_work_together_are_refused(flags: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named} "):
        resolve(flags, {}, {})


@pytest.mark.parametrize(
    "flags",
    [
        SQS,
        {"hooks": "callback"},  # the payload may name the URL
        {"hooks": "logging", "firehose_stream": "s"},
        {"broker_url": "amqp://host//", "visibility_timeout_s": "60"},  # RabbitMQ has no visibility timeout
        {"pool": "prefork", "max_tasks_per_child": "5"},
        {"task_timeout_s": "604800", "visibility_timeout_s": "60"},  # leases are renewed
        {"task_timeout_s": "604800", "drain_timeout_s": "1"},  # what still runs is handed back
        {"termination_grace_s": "40"},
        {"termination_grace_s": "3600", "drain_timeout_s": "3590"},
        {**SQS, "visibility_timeout_s": "38340"},
        {**SQS, "task_timeout_s": "43139", "retry_slot_s": "0", "store_retry_s": "0", "input_timeout_s": "1"},
        {**SQS, "visibility_timeout_s": "15"},
        {"visibility_timeout_s": "2"},
        {"result_expires_s": "61"},
        {"result_expires_s": "1", "result_backend": "s3://bucket/"},  # S3 expires nothing by itself
        {"result_expires_s": "1", "broker_url": "amqp://host//"},
        {"input_schemes": "s3"},
        {"http_port": "8080"},
        {"live_stall_s": "60"},
        {"stage_bytes_max": "20", "input_bytes_max": "10", "destination_bytes_max": "10"},
    ],
)
def test_settings_that_fit_give_no_warning(flags: dict[str, str]) -> None:
    assert resolve(flags, {}, {}).warnings == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pool": "gevent", "max_tasks_per_child": "5"}, "the gevent pool has no children"),
        ({"pool": "gevent", "max_memory_per_child_mb": "99"}, "the gevent pool has no children"),
        ({"pool": "gevent", "worker_rss_mb": "99"}, "the gevent pool has no children"),
        ({"sqs_url": "https://host/1/name"}, "the broker is not sqs://"),
        ({"sqs_wait_s": "5"}, "the broker is not sqs://"),
        ({**SQS, "sqs_wait_s": "20", "drain_timeout_s": "20"}, "the last poll of a worker that stops"),
        ({"firehose_linger_s": "0"}, "the logging hook is off"),
        ({"callback_url": "https://host/"}, "the callback hook is off"),
        ({"input_schemes": "s3", "input_allow": "host"}, "https:// inputs are off"),
        ({"firehose_stream": "s"}, "the logging hook is off"),
        ({**SQS, "visibility_timeout_s": "14"}, "one slow answer of SQS loses leases"),
        ({**SQS, "task_timeout_s": "41881"}, "together are 43201 s"),
        ({"result_expires_s": "60"}, "find no result and run twice"),
    ],
)
def test_what_is_pointless_or_risky_gives_one_warning(flags: dict[str, str], words: str) -> None:
    (warning,) = resolve(flags, {}, {}).warnings
    assert words in warning


def test_a_drain_that_does_not_fit_is_refused_with_the_longest_that_does() -> None:
    with pytest.raises(SettingsError) as refused:
        resolve({"termination_grace_s": "30"}, {}, {})
    assert refused.value.accepted.startswith(f"at most {30 - ENDING_S:g}: the worker is killed 30 s after")


def test_what_sqs_holds_is_twelve_hours() -> None:
    assert SQS_HELD_S_MAX == 43_200


@pytest.mark.parametrize(("low", "high"), [("70", "70"), ("80", "70"), ("50", "40")])
def test_a_pool_that_would_grow_where_it_shrinks_is_refused(low: str, high: str) -> None:
    with pytest.raises(SettingsError) as refused:
        resolve({"memory_low_percent": low, "memory_high_percent": high}, {}, {})
    assert refused.value.accepted.startswith(f"less than {high}, above which the pool shrinks")
