"""Settings that do not fit together."""

from __future__ import annotations

import sys

import pytest

from forwarder.settings import SettingsError, resolve
from forwarder.settings.coherence import NOT_IN_EFFECT, check_packages

SQS = {"broker_url": "sqs://", "sqs_url": "https://host/1/name"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"broker_url": "sqs://"}, "--sqs-url"),
        ({**SQS, "queues": "a,b"}, "--queue"),
        ({"hooks": "logging"}, "--firehose-stream"),
        ({"task_timeout_s": "60", "visibility_timeout_s": "60"}, "--task-timeout"),
        ({"visibility_timeout_s": "60"}, "--task-timeout"),
    ],
)
def test_settings_that_can_not_work_together_are_refused(flags: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        resolve(flags, {}, {})


@pytest.mark.parametrize(
    "flags",
    [
        SQS,
        {"hooks": "callback"},  # the payload may name the URL
        {"hooks": "logging", "firehose_stream": "s"},
        {"broker_url": "amqp://host//", "visibility_timeout_s": "60"},  # RabbitMQ has no visibility timeout
        {"task_timeout_s": "30", "visibility_timeout_s": "60", "retry_slot_s": "10"},
        {"pool": "prefork", "max_tasks_per_child": "5"},
    ],
)
def test_settings_that_fit_give_no_warning(flags: dict[str, str]) -> None:
    assert resolve(flags, {}, {}).warnings == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pool": "gevent", "max_tasks_per_child": "5"}, "the gevent pool has no children"),
        ({"sqs_url": "https://host/1/name"}, "the broker is not sqs://"),
        ({"callback_url": "https://host/"}, "the callback hook is off"),
        ({"firehose_stream": "s"}, "the logging hook is off"),
        ({"task_timeout_s": "55", "visibility_timeout_s": "60", "retry_slot_s": "5"}, "may run twice"),
    ],
)
def test_what_is_pointless_or_risky_gives_one_warning(flags: dict[str, str], words: str) -> None:
    (warning,) = resolve(flags, {}, {}).warnings
    assert words in warning


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("max_deliveries", "7"),
        ("autoscale", "8,1"),
        ("memory_limit_mb", "100"),
        ("worker_rss_mb", "100"),
        ("http_port", "8080"),
    ],
)
def test_a_setting_of_a_later_version_says_that_it_does_nothing_yet(field: str, text: str) -> None:
    assert field in NOT_IN_EFFECT
    (warning,) = resolve({field: text}, {}, {}).warnings
    assert "not in effect yet" in warning


def test_the_default_of_such_a_setting_is_no_reason_to_warn() -> None:
    assert resolve({"http_port": "0", "max_deliveries": "5"}, {}, {}).warnings == ()


def test_prefork_on_sqs_is_refused_without_pycurl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycurl", None)  # importing it then fails
    settings = resolve(SQS, {}, {}).settings  # a producer needs no pycurl
    with pytest.raises(SettingsError, match=r"--pool .*'prefork'.*gevent.*pip install 'forwarder\[sqs\]'"):
        check_packages(settings)


@pytest.mark.parametrize("flags", [{}, {**SQS, "pool": "gevent"}, {"broker_url": "amqp://host//"}])
def test_nothing_else_needs_pycurl(monkeypatch: pytest.MonkeyPatch, flags: dict[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "pycurl", None)
    check_packages(resolve(flags, {}, {}).settings)


def test_prefork_on_sqs_is_fine_with_pycurl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycurl", sys)
    check_packages(resolve(SQS, {}, {}).settings)
