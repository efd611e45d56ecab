"""A message whose task the worker was too short of something to run goes back after a pause."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from celery.exceptions import Reject
from celery.worker import state

from forwarder.forwarding.errors import SHORTAGE
from tests.unit.brokers.request_scene import SECRET, Scene, no_requests_left


@pytest.fixture(autouse=True)
def _no_requests_left() -> Iterator[None]:
    with no_requests_left():
        yield


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN])
@pytest.mark.parametrize("begun", [True, False])
def test_what_the_worker_was_too_short_of_something_to_run_goes_back_uncounted_a_second_later(
    begun: bool, number: int
) -> None:
    scene = Scene()
    error = OSError(number, SECRET)
    scene.fail(error) if begun else scene.request.give_back(error)
    assert (scene.settled, scene.sleeps) == ([], [])
    assert scene.events == ["task-rejected"]
    scene.background.pop()()
    assert (scene.settled, scene.sleeps, scene.pardoned) == (["hand_back"], [1.0], [])
    state.task_ready(scene.request)


def test_a_task_that_met_a_shortage_itself_goes_back_uncounted_a_second_later() -> None:
    scene = Scene()
    scene.fail(Reject(SHORTAGE, requeue=True), stored=True)
    assert scene.settled == []
    scene.background.pop()()
    assert (scene.settled, scene.sleeps) == (["hand_back"], [1.0])


def test_a_task_that_took_all_memory_goes_back_a_second_later_and_is_pardoned_which_has_an_end() -> None:
    """Its own size may be the reason, at each delivery."""
    scene = Scene()
    scene.fail(MemoryError())
    scene.background.pop()()
    assert (scene.settled, scene.sleeps, scene.pardoned) == (["requeue"], [1.0], [scene.delivery])


def test_a_stopping_worker_gives_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.fail(OSError(errno.EMFILE, SECRET))
    monkeypatch.setattr(state, "should_stop", 0)
    scene.background.pop()()
    assert (scene.settled, scene.sleeps) == (["hand_back"], [])


def test_what_a_stop_hands_back_during_the_pause_is_not_settled_twice() -> None:
    scene = Scene()
    scene.fail(MemoryError())
    scene.request.abandon(scene.pool)
    scene.book.hand_back([scene.delivery])
    scene.background.pop()()
    assert (scene.settled, scene.pardoned) == (["hand_back"], [])


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, SECRET)], ids=["counted", "uncounted"]
)
def test_a_message_that_is_lost_during_the_pause_kills_nothing(error: Exception) -> None:
    """The run is over, and its slot may run another task by now."""
    scene = Scene()
    scene.accept()
    scene.fail(error)
    scene.request.abandon(scene.pool)
    scene.background.pop()()
    assert scene.pool.killed == []
    assert scene.settled == []


def test_without_a_thread_to_wait_in_a_message_goes_back_at_once() -> None:
    scene = Scene()

    def no_thread(work: object) -> None:
        raise RuntimeError("can't start new thread")

    scene.request.in_background = no_thread
    scene.fail(OSError(errno.EAGAIN, SECRET))
    assert scene.settled == ["hand_back"]
