"""The composed Celery app: its guarantees are configuration, so the configuration is asserted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.app import MAIN_STORE_TIMEOUT_S, Composition, client_app
from forwarder.brokers.deliveries import Delivery
from forwarder.forwarding import errors
from forwarder.forwarding.task import TASK_NAMES
from forwarder.settings.datadog import AGENT_VARIABLES
from forwarder.settings.model import Settings
from forwarder.telemetry_parts import codes
from forwarder.worker import _prefork_options


def test_one_message_is_held_per_slot_and_only_json_is_read() -> None:
    conf = client_app(Settings()).conf
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]
    assert conf.task_serializer == conf.result_serializer == "json"
    assert conf.task_create_missing_queues is False


def test_started_is_tracked_where_it_is_asked_for() -> None:
    task: Any = Composition(Settings(track_started=True)).celery_app().tasks["forwarder.forward"]
    assert task.stores_started is True


def test_the_task_is_registered_under_each_of_its_names() -> None:
    app = Composition(Settings()).celery_app()
    assert set(TASK_NAMES) <= set(app.tasks)
    for name in TASK_NAMES:
        assert app.tasks[name].acks_late is True
        assert app.tasks[name].reject_on_worker_lost is True
        assert app.tasks[name].track_started is False


def test_one_result_backend_serves_the_whole_process() -> None:
    import threading

    app = client_app(Settings())
    seen = [app.backend]
    thread = threading.Thread(target=lambda: seen.append(app.backend))
    thread.start()
    thread.join()
    assert seen[0] is seen[1]


def test_the_main_process_has_a_result_backend_of_its_own_one_try_of_which_ends_soon() -> None:
    """A fork waits for it."""
    app = Composition(Settings(result_backend="redis://h/1")).celery_app()
    store: Any = app.conf.forwarder_store
    backend: Any = app.backend
    assert (store.connparams["host"], store.connparams["db"]) == ("h", 1)
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        assert store.connparams[timeout] == MAIN_STORE_TIMEOUT_S < backend.connparams[timeout]


def test_one_try_of_the_main_process_ends_soon_on_s3_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-west-1")
    store: Any = Composition(Settings(result_backend="s3://b/p")).celery_app().conf.forwarder_store
    config = store._client().meta.config
    assert config.connect_timeout == config.read_timeout == MAIN_STORE_TIMEOUT_S
    assert config.retries["total_max_attempts"] == 1


def test_composing_opens_nothing_and_builds_no_client() -> None:
    settings = Settings(
        hooks=("logging", "callback"),
        firehose_stream="records",
        result_backend="s3://bucket/prefix",
        broker_url="sqs://",
        sqs_url="https://sqs.eu-west-1.amazonaws.com/123456789012/q",
        queues=("q",),
    )
    composition = Composition(settings)
    composition.celery_app()
    composition.close()
    assert not composition.aws._values
    assert not composition.parts._values


def test_leaving_says_which_pardons_are_lost_and_the_end_of_a_child_does_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child inherits what its parent is still to note."""
    monkeypatch.setattr("forwarder.brokers.background.threading.Thread", _no_thread)
    composition = Composition(Settings())
    composition.leave()  # before there is anything
    composition.celery_app()
    message = SimpleNamespace(headers={"id": "t1"})
    composition.book.pardon(Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message))
    composition.close()
    assert "pardons_dropped" not in caplog.text
    composition.leave()
    assert "pardons_dropped number=1" in caplog.text


def _no_thread(**_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("settings", "schemes"),
    [
        (Settings(), "s3"),
        (Settings(input_allow=("*.example.com",)), "s3,https"),
        (Settings(input_allow=("*.example.com",), input_schemes=("s3",)), "s3"),
        (Settings(input_allow=("*.example.com",), input_schemes=("https",)), "https"),
    ],
)
def test_inputs_come_by_the_allowed_schemes_and_https_only_where_a_host_is_named(
    settings: Settings, schemes: str
) -> None:
    staging = Composition(settings).parts.get().forwarder.staging
    assert repr(staging).endswith(f" schemes={schemes}>")


def test_nothing_is_measured_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AGENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert Composition(Settings()).telemetry(slots=lambda: 1) is None


def test_the_autoscalers_decisions_are_in_the_table_that_exporters_read() -> None:
    settings = Settings(autoscale=(4, 1), memory_limit_mb=4096)
    composition = Composition(settings)
    app = composition.celery_app()
    _prefork_options(settings, app, composition)
    assert app.conf.forwarder_scaling.counts is composition.metrics.get()


def test_what_gets_its_outcome_without_its_slot_is_counted() -> None:
    composition = Composition(Settings())
    delivery = Delivery(tag="t", queue="q", number=9, confirmed_s=0.0, message=None)
    for outcome in ("invalid_message", "revoked", "dead_lettered"):
        composition.book.concluded(delivery, outcome)
    assert composition.metrics.get().snapshot() == {
        "forwarder_tasks_total{queue=q,outcome=invalid_message}": 1,
        "forwarder_tasks_total{queue=q,outcome=revoked}": 1,
        "forwarder_tasks_total{queue=q,outcome=dead_lettered}": 1,
    }


def test_deliveries_are_counted_as_slots_take_them_up_and_whatever_is_put_aside_is_dead() -> None:
    composition = Composition(Settings())
    book = composition.book
    for number, again in ((1, False), (2, False), (1, True)):
        book.begun(
            Delivery(tag="t", queue="q", number=number, redelivered=again, confirmed_s=0.0, message=None)
        )
    book.put_aside(Delivery(tag="t", queue="q", number=1, confirmed_s=0.0, message=None))
    assert composition.metrics.get().snapshot() == {
        "forwarder_deliveries_total{queue=q,kind=first}": 1,
        "forwarder_deliveries_total{queue=q,kind=redelivered}": 2,
        "forwarder_deliveries_total{queue=q,kind=dead}": 1,
    }


def test_every_code_of_a_failure_is_there_from_the_start() -> None:
    """So an alert sees the first failure."""
    source = Path(errors.__file__).read_text()
    assert codes() == sorted(re.findall(r'^    code = "(\w+)"$', source, re.MULTILINE))


def test_the_secrets_of_the_settings_are_not_in_their_repr() -> None:
    settings = Settings(
        broker_url="redis://:hunter2@h/0", result_backend="redis://:hunter2@h/1", callback_secret="hunter2"
    )
    assert "hunter2" not in repr(settings)
    assert sys.getsizeof(settings)
