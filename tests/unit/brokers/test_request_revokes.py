"""A task that is revoked is killed, stored and acked; one that is abandoned is killed and settles nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.worker import state

from tests.unit.brokers.request_scene import Scene, no_requests_left


@pytest.fixture(autouse=True)
def _no_requests_left() -> Iterator[None]:
    with no_requests_left():
        yield


def test_an_abandoned_task_is_killed_and_settles_nothing() -> None:
    scene = Scene()
    scene.accept()
    scene.request.abandon(scene.pool)
    assert scene.pool.killed == [(77, signal.SIGKILL)]
    for error in (Terminated(9), WorkerLostError("exit"), SystemExit(1)):
        scene.fail(error)
    scene.request.on_success((0, None, 0.1))
    assert scene.settled == []
    assert scene.background == []
    assert len(scene.book) == 1


def test_a_task_that_is_abandoned_before_a_slot_took_it_is_killed_when_one_does() -> None:
    scene = Scene()
    scene.request.abandon(scene.pool)
    assert scene.pool.killed == []
    scene.accept()
    assert scene.pool.killed == [(77, signal.SIGKILL)]


def test_a_task_that_is_abandoned_before_it_went_to_the_pool_never_goes() -> None:
    scene = Scene()
    scene.request.abandon(scene.pool)
    with pytest.raises(TaskRevokedError):
        scene.request.execute_using_pool(scene.pool)
    assert scene.pool.applied == []
    assert scene.settled == scene.backend.revoked == []


def test_a_task_that_has_ended_is_not_abandoned_any_more() -> None:
    """Its slot may run another task by now."""
    scene = Scene()
    scene.accept()
    scene.request.on_success((0, None, 0.1))
    scene.request.abandon(scene.pool)
    assert scene.pool.killed == []


def test_a_task_that_is_revoked_while_it_runs_is_killed_stored_and_then_acked() -> None:
    scene = Scene()
    scene.accept()
    scene.request.terminate(scene.pool, signal="TERM")
    assert scene.pool.killed == [(77, signal.SIGTERM)]
    assert scene.settled == []
    scene.background.pop()()
    assert scene.backend.revoked == ["terminated"]
    assert scene.settled == ["ack"]
    assert scene.events == ["task-started", "task-revoked"]


def test_the_end_of_a_copy_that_was_revoked_settles_nothing() -> None:
    scene = Scene()
    scene.accept()
    scene.request.terminate(scene.pool, signal="TERM")
    for error in (Terminated(15), SystemExit(1), WorkerLostError("exit")):
        scene.fail(error)
    assert scene.settled == []
    assert len(scene.background) == 1


def test_a_task_that_was_revoked_before_it_ran_is_stored_and_acked() -> None:
    scene = Scene()
    state.revoked.add(scene.request.id)
    with pytest.raises(TaskRevokedError):
        scene.request.execute_using_pool(scene.pool)
    scene.background.pop()()
    assert scene.backend.revoked == ["revoked"]
    assert scene.settled == ["ack"]
    assert scene.pool.applied == []


def test_a_task_that_is_revoked_on_its_way_to_a_slot_is_killed_there() -> None:
    scene = Scene()
    scene.request.terminate(scene.pool, signal="TERM")
    scene.accept()
    assert scene.pool.killed == [(77, signal.SIGTERM)]
    scene.background.pop()()
    assert scene.settled == ["ack"]


def test_a_revoke_is_not_acked_before_the_store_is_back() -> None:
    scene = Scene()
    scene.backend.away = 3
    scene.accept()
    scene.request.terminate(scene.pool, signal="TERM")
    scene.background.pop()()
    assert scene.sleeps == [5.0] * 3
    assert scene.backend.revoked == ["terminated"]
    assert scene.settled == ["ack"]
    assert scene.concluded == ["revoked"], "told once, for the numbers"


@pytest.mark.parametrize(("away", "settled"), [(0, ["ack"]), (1, ["hand_back"])])
def test_without_a_thread_a_revoke_is_stored_here_or_its_message_goes_back(
    away: int, settled: list[str]
) -> None:
    scene = Scene()

    def no_thread(work: object) -> None:
        raise RuntimeError("can't start new thread")

    scene.request.in_background = no_thread
    scene.backend.away = away
    scene.accept()
    scene.request.terminate(scene.pool, signal="TERM")
    assert scene.settled == settled


def test_a_revoke_that_waits_for_the_store_ends_when_the_message_is_somebody_elses() -> None:
    scene = Scene()
    scene.backend.away = 1_000_000
    scene.request.sleep = lambda _: scene.request.abandon(scene.pool)
    scene.accept()
    scene.request.terminate(scene.pool, signal="TERM")
    scene.background.pop()()
    assert scene.settled == scene.backend.revoked == []


def test_a_result_that_was_stored_before_the_revoke_stays() -> None:
    scene = Scene()
    scene.accept()
    scene.backend.found = object()
    scene.request.terminate(scene.pool, signal="TERM")
    scene.background.pop()()
    assert scene.backend.revoked == scene.concluded == []
    assert scene.settled == ["ack"]
