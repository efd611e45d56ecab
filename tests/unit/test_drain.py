"""The drain's decisions, without signals, threads or a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from celery.worker import state

from forwarder.drain import (
    ALL_BACK_BY_S,
    CLOSED_BY_S,
    COMING_OUT_S,
    HANDED_BACK_BY_S,
    LEFT_BY_S,
    LOOK_S,
    OUT_BY_S,
    WATCHDOG_S,
)
from forwarder.settings.coherence import ENDING_S
from tests.unit.drain_scene import Scene, drain_scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    with drain_scene() as made:
        yield made


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
    assert scene.clock.now_s == pytest.approx(9 + 2 * COMING_OUT_S, abs=LOOK_S * 2)


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


def test_a_main_thread_that_came_out_has_its_time_to_end_the_process(scene: Scene) -> None:
    scene.drain.consumer_stopped()
    scene.drain.begin(at_once=True)
    scene.drain.end(scene)
    scene.drain.run(scene)
    assert scene.story == ["closed", "left 0"]
    assert scene.clock.now_s == 2 * COMING_OUT_S


def test_a_main_thread_that_comes_out_while_the_drain_ends_the_process_leaves_that_to_it(
    scene: Scene,
) -> None:
    """Both at once ran two of one atexit function, which ended a worker with SIGSEGV."""
    out = threading.Event()

    def come_out() -> None:
        scene.drain.end(scene)
        out.set()

    def leave(code: int) -> None:
        threading.Thread(target=come_out, daemon=True).start()
        scene.story.append(f"left {code} {'beside' if out.wait(0.2) else 'before'} the main thread")

    scene.drain._leave = leave
    scene.stop(at_once=True)
    assert scene.story == ["closed", "left 0 before the main thread"]
