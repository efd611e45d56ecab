"""The drain's decisions, without signals, threads or a worker."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery.apps.worker import Worker
from celery.worker import WorkController, state

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.drain import (
    ALL_BACK_BY_S,
    CLOSED_BY_S,
    COMING_OUT_S,
    HANDED_BACK_BY_S,
    LEFT_BY_S,
    LOOK_S,
    OUT_BY_S,
    WATCHDOG_S,
    Drain,
    DrainingWorker,
)
from forwarder.settings.coherence import ENDING_S


class Clock:
    """Time that passes only where somebody waits; ``at`` says what happens when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def at(self, moment_s: float, happens: Callable[[], None]) -> None:
        self._due.append((moment_s, happens))

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for moment_s, happens in list(self._due):
            if moment_s <= self.now_s:
                self._due.remove((moment_s, happens))
                happens()


class Book(LeaseBook):
    """A real book whose waiting is the clock's."""

    def __init__(self, clock: Clock, story: list[str]) -> None:
        super().__init__(lambda: self)  # type: ignore[arg-type,return-value]
        self._clock = clock
        self.story = story

    def receive(self, message: Any) -> Delivery:
        return Delivery(
            tag=message, queue="q", number=1, confirmed_s=0.0, message=SimpleNamespace(headers={})
        )

    def hand_back(self, deliveries: Any) -> Any:
        if deliveries and not hasattr(self, "_inside"):
            self._inside = True
            try:
                super().hand_back(deliveries)
            finally:
                del self._inside
        else:
            self.story.extend(f"handed back {delivery.tag}" for delivery in deliveries)
        return []

    def wait_empty(self, timeout_s: float) -> bool:
        if len(self):
            self._clock.sleep(timeout_s)
        return not len(self)

    def finish(self, delivery: Delivery) -> Callable[[], None]:
        return lambda: self.story.append("finished") if self.lose(delivery) else None


class Scene:
    """A drain with everything around it made of lists."""

    hostname = "here"

    def __init__(self, *, timeout_s: float = 30.0) -> None:
        self.held: list[Delivery] = []
        self.story: list[str] = []
        self.armed: list[float] = []
        self.hangs = False
        self.clock = Clock()
        self.book = Book(self.clock, self.story)
        self.drain = Drain(
            book=self.book,
            timeout_s=timeout_s,
            close=lambda: self.story.append("closed"),
            watch=self.armed.append,
            leave=lambda code: self.story.append(f"left {code}"),
            monotonic=lambda: self.clock.now_s,
            sleep=self.clock.sleep,
            done_within=self.done_within,
        )

    def done_within(self, work: Callable[[], None], seconds: float) -> bool:
        if self.hangs:
            self.clock.sleep(seconds)
            return False
        work()
        return True

    def abandon(self, delivery: Delivery) -> None:
        note = f"abandoned {delivery.tag}"
        if note not in self.story:  # the second time does nothing
            self.story.append(note)

    def stop(self, **how: Any) -> None:
        self.drain.begin(**how)
        self.drain.run(self)


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    state.should_stop = None
    for end in (made.drain._bell, made.drain._push):
        end.close()


def test_an_idle_worker_is_gone_as_soon_as_its_consumer_is_closed(scene: Scene) -> None:
    scene.clock.at(1.0, scene.drain.consumer_stopped)
    scene.stop()
    assert scene.story == ["closed", "left 0"]
    assert scene.clock.now_s == pytest.approx(1 + COMING_OUT_S, abs=LOOK_S * 2)


def test_what_finishes_in_time_is_not_handed_back(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.clock.at(20.0, scene.book.finish(scene.book.open("a")))
    scene.stop()
    assert scene.story == ["finished", "closed", "left 0"]
    assert scene.clock.now_s == pytest.approx(20 + COMING_OUT_S, abs=LOOK_S * 2)


def test_what_was_asked_for_before_the_stop_is_waited_for_by_whoever_ends_the_worker(scene: Scene) -> None:
    """Celery's main thread comes out as soon as nothing runs, and may be the one."""
    scene.drain.consumer_stopped()
    scene.book.expecting = lambda: scene.clock.now_s < 9.0
    scene.drain.begin()
    scene.drain.end(scene)
    assert scene.story == ["closed"]
    assert scene.clock.now_s == pytest.approx(9, abs=LOOK_S * 2)
    scene.drain.run(scene)
    assert scene.clock.now_s == pytest.approx(9 + COMING_OUT_S, abs=LOOK_S * 2)


@pytest.mark.parametrize("at_once", [False, True])
def test_what_was_asked_for_is_waited_for_within_the_drain_and_not_at_once(
    at_once: bool, scene: Scene
) -> None:
    scene.drain.consumer_stopped()
    scene.book.expecting = lambda: True
    scene.stop(at_once=at_once)
    assert scene.story == ["closed", "left 0"]
    assert scene.clock.now_s == pytest.approx(COMING_OUT_S + (0 if at_once else 30), abs=LOOK_S * 2)


def test_what_still_runs_when_the_time_is_over_is_killed_then_handed_back(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.book.open("a")
    scene.book.open("b")
    scene.stop()
    killed = ["abandoned a", "abandoned b"]
    assert scene.story == [*killed, "handed back a", "handed back b", "closed", "left 0"]
    assert scene.clock.now_s == pytest.approx(30 + COMING_OUT_S)
    assert len(scene.book) == 0


def test_a_consumer_that_never_closes_does_not_hold_up_the_end(scene: Scene) -> None:
    scene.stop()
    assert scene.story == ["closed", "left 0"]
    assert scene.clock.now_s == pytest.approx(30 + CLOSED_BY_S + COMING_OUT_S, abs=LOOK_S * 2)


def test_a_stop_at_once_waits_for_no_task(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.book.open("a")
    scene.stop(at_once=True)
    assert scene.story[:2] == ["abandoned a", "handed back a"]
    assert scene.clock.now_s == COMING_OUT_S


def test_messages_go_back_once_the_consumer_would_not_take_them_again(scene: Scene) -> None:
    scene.book.open("a")
    scene.clock.at(1.0, lambda: scene.story.append("consumer stopped"))
    scene.clock.at(1.0, scene.drain.consumer_stopped)
    scene.stop(at_once=True)
    assert scene.story[:3] == ["abandoned a", "consumer stopped", "handed back a"]


def test_a_second_stop_ends_the_waiting(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.book.open("a")
    scene.clock.at(5.0, lambda: scene.drain.begin(at_once=True))
    scene.stop()
    assert scene.story[:2] == ["abandoned a", "handed back a"]
    assert scene.clock.now_s == pytest.approx(5 + COMING_OUT_S, abs=LOOK_S * 2)


def test_what_came_last_is_handed_back_too(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.clock.at(0.5, lambda: scene.held.append(scene.book.open("late")))
    scene.stop(at_once=True)
    assert scene.story[:2] == ["abandoned late", "handed back late"]


def test_celery_is_told_to_stop_with_the_first_call(scene: Scene) -> None:
    scene.drain.begin()
    assert state.should_stop == 0


def test_the_watchdog_allows_for_the_drain_and_a_second_stop_shortens_it(scene: Scene) -> None:
    scene.drain.begin()
    scene.drain.begin()
    scene.drain.begin(at_once=True)
    assert scene.armed == [30 + WATCHDOG_S, WATCHDOG_S]


def test_the_steps_of_the_end_follow_each_other_within_the_time_that_the_settings_reckon_with() -> None:
    moments = [0.0, CLOSED_BY_S, HANDED_BACK_BY_S, OUT_BY_S, ALL_BACK_BY_S, LEFT_BY_S, WATCHDOG_S, ENDING_S]
    assert moments == sorted(set(moments))
    assert CLOSED_BY_S + COMING_OUT_S <= OUT_BY_S
    assert LEFT_BY_S + 2 * LOOK_S < WATCHDOG_S, "it must not bite a worker that leaves by itself"


@pytest.mark.parametrize("held", [0, 1, 50])
def test_a_worker_whose_every_step_hangs_leaves_in_time_and_with_success(held: int, scene: Scene) -> None:
    for number in range(held):
        scene.book.open(str(number))
    scene.hangs = True
    scene.stop()
    assert scene.story[-1] == "left 0"
    assert scene.clock.now_s <= 30 + LEFT_BY_S + LOOK_S


def test_hooks_are_flushed_where_the_hand_back_hangs(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.hangs = True
    scene.clock.at(ALL_BACK_BY_S, lambda: setattr(scene, "hangs", False))
    scene.stop(at_once=True)
    assert scene.story == ["closed", "left 0"]


def test_no_child_is_forked_while_messages_are_handed_back(scene: Scene) -> None:
    gates: list[str] = []
    scene.book.unforked.guard()
    scene.drain._close = lambda: gates.append(repr(scene.book.unforked))
    scene.drain.end(scene)
    assert gates == ["<ForkGate inside=1 forking=False>"]


def test_an_error_that_ended_the_worker_is_in_the_exit_code(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.drain.begin(exit_code=1)
    scene.stop(exit_code=0)
    assert scene.story[-1] == "left 1"


def test_closing_is_done_once(scene: Scene) -> None:
    scene.drain.end(scene)
    scene.stop(at_once=True)
    assert scene.story.count("closed") == 1


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
