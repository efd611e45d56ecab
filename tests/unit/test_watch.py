"""When the worker counts as alive and as ready: from the states of its parts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer

from forwarder.brokers.deliveries import Delivery, Settlement
from forwarder.brokers.keeper import LeaseKeeper
from forwarder.brokers.leases import LeaseBook
from forwarder.inference import readiness
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings
from forwarder.watch import STALL_SPARE_S, Watch, loop_beat


class Broker:
    away = False

    def receive(self, message: Any) -> Delivery:
        return Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message)

    def renew(self, deliveries: list[Delivery]) -> list[Delivery]:
        if self.away:
            raise ConnectionError
        return []

    def take_over(self) -> int:
        return 0

    def ack(self, delivery: Delivery) -> bool:
        return True


class Scene:
    """A worker that consumes, with its services there, and time that passes by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
        settings = replace(settings, result_backend="redis://:hunter2@store:6379/1")
        self.now_s = 0.0
        self.draining = False
        self.retries = 0
        self.waiting_age_s: float | None = None
        self.inference_up = True
        self.broker = Broker()
        self.book = LeaseBook(lambda: self.broker)  # type: ignore[arg-type, return-value]
        self.keeper = LeaseKeeper(book=self.book, interval_s=1.0, cancel=lambda delivery: None)
        self.results_error: Exception | None = None
        monkeypatch.setattr(readiness, "probe", lambda *_: None if self.inference_up else "HTTP 503")
        self.watch = Watch(
            settings=settings,
            book=self.book,
            keeper=self.keeper,
            results=self.ask_results,
            loop=loop_beat(),
            draining=lambda: self.draining,
            retries=lambda: self.retries,
            waiting_age_s=lambda: self.waiting_age_s,
        )
        self.loop = self.watch.loop
        for part in (self.loop, self.watch.hub, self.watch.liveness._progress):
            part._monotonic = lambda: self.now_s
        self.look()

    def ask_results(self) -> None:
        if self.results_error is not None:
            raise self.results_error

    def look(self) -> None:
        self.watch.inference.look()
        self.watch.results.look()

    def take(self, *, begun: bool = True, eta: object = None) -> Delivery:
        delivery = self.book.open(SimpleNamespace(headers={"id": "a"}, delivery=None))
        delivery.request = SimpleNamespace(time_start=1.0 if begun else None, eta=eta)
        return delivery

    def live_after(self, seconds: float) -> tuple[str, ...]:
        """Return why the worker isn't alive after so long in which its loop turns; it is looked at before."""
        self.watch.liveness.reasons()
        self.now_s += seconds
        if self.loop.turning:
            self.loop()
        return self.watch.liveness.reasons()

    def ready(self) -> tuple[str, ...]:
        return self.watch.readiness.reasons()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(monkeypatch, Settings(live_stall_s=10.0))
    scene.loop()
    return scene


def test_an_idle_worker_is_alive_for_ever(scene: Scene) -> None:
    assert scene.live_after(1e6) == ()
    assert scene.ready() == ()


def test_a_task_that_does_not_end_stalls_the_worker(scene: Scene) -> None:
    scene.take()
    assert scene.live_after(10) == ()
    assert scene.live_after(1) == ("stalled",)


def test_one_that_ends_in_whatever_way_is_progress(scene: Scene) -> None:
    scene.take()
    other = scene.take()
    assert scene.live_after(9) == ()
    scene.book.settle(other, Settlement.ACK)
    assert scene.live_after(9) == ()
    assert scene.live_after(2) == ("stalled",)


def test_a_message_that_no_slot_ever_begins_stalls_the_worker(scene: Scene) -> None:
    scene.take(begun=False)
    assert scene.live_after(11) == ("stalled",)


def test_a_task_that_waits_for_its_moment_does_not_stall_the_worker(scene: Scene) -> None:
    scene.take(begun=False, eta="tomorrow")
    assert scene.live_after(1e5) == ()


def test_what_waits_in_the_queue_and_is_not_taken_stalls_the_worker(scene: Scene) -> None:
    scene.waiting_age_s = 0.0
    assert scene.live_after(11) == ("stalled",)


def test_what_waited_at_the_last_look_is_forgotten_once_that_is_older_than_the_last_end(scene: Scene) -> None:
    task = scene.take()
    assert scene.live_after(5) == ()
    scene.waiting_age_s = 0.0
    scene.book.settle(task, Settlement.ACK)
    assert scene.live_after(0) == ()
    for scene.waiting_age_s in (11.0, 22.0, 33.0):  # no look meanwhile
        assert scene.live_after(11) == ()


def test_without_a_setting_a_task_may_take_whatever_the_other_settings_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(task_timeout_s=100.0)
    scene = Scene(monkeypatch, settings)
    scene.loop()
    scene.take()
    assert scene.live_after(held_s(settings) + STALL_SPARE_S) == ()
    assert scene.live_after(1) == ("stalled",)


def lose_connection(scene: Scene) -> None:
    scene.loop.pause()


def fail_renewals(scene: Scene) -> None:
    scene.broker.away = True
    scene.keeper.round()


def fail_polls(scene: Scene) -> None:
    scene.book.answered = False


@pytest.mark.parametrize("go_away", [lose_connection, fail_renewals, fail_polls])
def test_while_the_broker_is_away_the_worker_is_alive_and_not_ready(scene: Scene, go_away: Any) -> None:
    scene.take()
    scene.waiting_age_s = 0.0
    go_away(scene)
    assert scene.live_after(1e5) == ()
    assert scene.ready() == ("broker",)


def test_once_the_broker_is_back_the_whole_time_begins_anew(scene: Scene) -> None:
    scene.take()
    assert scene.live_after(9) == ()
    fail_renewals(scene)
    assert scene.live_after(100) == ()
    scene.broker.away = False
    scene.keeper.round()
    assert scene.ready() == ()
    assert scene.live_after(9) == ()
    assert scene.live_after(2) == ("stalled",)


def test_while_the_inference_server_is_away_the_worker_is_alive_and_not_ready(scene: Scene) -> None:
    scene.take()
    scene.inference_up = False
    scene.look()
    assert scene.live_after(1e5) == ()
    assert scene.ready() == ("inference",)


def test_while_the_result_store_is_away_the_worker_is_alive_and_not_ready_and_the_log_names_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scene.take()
    scene.results_error = ConnectionError("of hunter2")
    scene.look()
    assert scene.live_after(1e5) == ()
    assert scene.ready() == ("results",)
    scene.results_error = None
    scene.look()
    assert scene.ready() == ()
    assert caplog.messages == [
        "result_store_away reason='redis://***@store:6379/1: ConnectionError'",
        "result_store_back",
    ]


def test_a_loop_that_does_not_turn_is_not_alive(scene: Scene) -> None:
    scene.now_s += 31
    assert scene.watch.liveness.reasons() == ("loop",)


def test_a_worker_that_drains_is_alive_and_not_ready(scene: Scene) -> None:
    scene.take()
    scene.draining = True
    assert scene.live_after(1e5) == ()
    assert scene.ready() == ("draining",)


def test_a_drain_that_ends_the_loop_says_nothing_of_the_broker(scene: Scene) -> None:
    scene.loop.pause()
    assert "broker" in scene.ready()
    scene.draining = True
    assert scene.ready() == ("draining",)


def test_a_worker_starts_until_its_loop_has_turned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Settings())
    assert scene.watch.starting
    assert scene.ready() == ()
    scene.retries = 1
    assert scene.ready() == ("broker",)
    scene.loop()
    scene.loop.pause()
    scene.retries = 0
    assert not scene.watch.starting
    assert scene.ready() == ("broker",)


def test_its_gauges_are_those_of_the_catalogue(scene: Scene) -> None:
    scene.inference_up = False
    scene.look()
    told = {(reading.name, *reading.labels.values()): reading.value for reading in scene.watch.readings()}
    assert told == {
        ("forwarder_live",): 1.0,
        ("forwarder_loop_lag_seconds",): 0.0,
        ("forwarder_dependency_up", "broker"): 1.0,
        ("forwarder_dependency_up", "inference"): 0.0,
        ("forwarder_dependency_up", "results"): 1.0,
    }


def test_celery_still_counts_its_tries_to_connect() -> None:
    """Where RabbitMQ is away at the start, nothing else tells."""
    assert Consumer.broker_connection_retry_attempt == 0
