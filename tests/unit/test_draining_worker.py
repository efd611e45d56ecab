"""What of Celery's worker the drain takes over: its signals, its stop, its way to begin a task."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery.apps.worker import Worker
from celery.worker import WorkController, state

from forwarder.draining_worker import DrainingWorker
from tests.unit.drain_scene import Book, Clock, Scene, drain_scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    with drain_scene() as made:
        yield made


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGINT], False),
        ([signal.SIGHUP], False),
        ([signal.SIGQUIT], True),
        ([signal.SIGTERM] * 2, True),
    ],
)
def test_the_second_signal_and_sigquit_do_not_wait(
    numbers: Sequence[int], at_once: bool, scene: Scene
) -> None:
    for number in numbers:
        scene.drain._on_signal(number, None)
    assert f"at_once={at_once}" in repr(scene.drain)


def test_a_child_that_inherited_the_handler_is_not_stopped_by_it(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    scene.drain._on_signal(signal.SIGTERM, None)
    assert state.should_stop is None
    assert scene.armed == []


class Stub(DrainingWorker):
    """The worker without Celery's own start."""

    def __init__(self, drain: Any) -> None:
        self.drain = drain
        self.pool = object()


def test_the_drain_takes_over_every_signal_with_which_celery_stops_or_restarts(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(number))
    scene.drain.install(scene)
    scene.drain.begin(at_once=True)  # ends the thread
    for thread in threading.enumerate():
        if thread.name == "drain":
            thread.join(5.0)
    assert scene.story[-1] == "left 0"
    assert set(taken) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def test_what_runs_is_waited_for_where_celery_terminates(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    """It does so for want of file descriptors; stock, the tasks that have theirs are killed."""
    stopped: list[Any] = []
    monkeypatch.setattr(Worker, "stop", lambda self, **how: stopped.append(how["exitcode"]))
    monkeypatch.setattr(Worker, "terminate", lambda self, **_: pytest.fail("at once"))
    Stub(scene.drain).terminate()
    assert stopped == [scene.drain.exit_code] == [1]
    assert "at_once=False" in repr(scene.drain)


def test_a_request_that_cannot_be_abandoned_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(pool: object) -> None:
        raise OSError("payload-text")

    delivery = Book(Clock(), []).open("a")
    worker = Stub(None)
    worker.abandon(delivery)  # not yet a request
    delivery.request = SimpleNamespace(abandon=broken)
    worker.abandon(delivery)
    assert "abandon_failed" in caplog.text
    assert "payload-text" not in caplog.text


def test_celery_stops_its_consumer_then_tells_the_drain_then_waits_for_its_pool() -> None:
    blueprint: Any = DrainingWorker.Blueprint()
    blueprint.steps = blueprint.claim_steps()
    started = [step.__name__ for step in blueprint._finalize_steps(blueprint.steps)]
    stopped = started[::-1]
    places = [stopped.index(name) for name in ("Consumer", "NoteConsumerStopped", "Pool")]
    assert places == sorted(places)


def test_celerys_worker_has_the_methods_that_the_drain_hooks_into() -> None:
    """None is documented: Celery calls each of them at the place that matters here."""
    assert "self.install_platform_tweaks(self)" in inspect.getsource(Worker.on_start)
    assert "self.stop(exitcode=exc.code)" in inspect.getsource(WorkController.start)
    assert "self.terminate()" in inspect.getsource(WorkController.start)
    assert "req.execute_using_pool(self.pool)" in inspect.getsource(WorkController._process_task)  # type: ignore[attr-defined]
    assert "self._quick_release()" in inspect.getsource(WorkController._process_task)  # type: ignore[attr-defined]


@pytest.mark.parametrize("counts_slots", [True, False])
def test_a_request_that_celery_can_not_begin_goes_back_and_frees_its_slot(counts_slots: bool) -> None:
    given_back: list[str] = []
    released: list[str] = []

    class Request:
        id = "a"

        def execute_using_pool(self, pool: Any) -> None:
            raise TypeError

        def give_back(self, error: BaseException) -> None:
            given_back.append(type(error).__name__)

    worker: Any = object.__new__(DrainingWorker)
    worker.pool = None
    if counts_slots:
        worker._quick_release = lambda: released.append("slot")
    worker._process_task(Request())
    assert given_back == ["TypeError"]
    assert released == ["slot"] * counts_slots
