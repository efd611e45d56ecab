"""What becomes of a message, for each way in which its task can end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import Ignore, Reject
from celery.worker import state

from forwarder.brokers.deliveries import Delivery
from forwarder.forwarding.errors import DeadLettered, InferenceTimeout
from tests.unit.brokers.request_scene import MAX_DELIVERIES, SECRET, Scene, no_requests_left


@pytest.fixture(autouse=True)
def _no_requests_left() -> Iterator[None]:
    with no_requests_left():
        yield


def test_a_success_is_acked_through_the_book() -> None:
    scene = Scene()
    scene.accept()
    scene.request.on_success((0, None, 0.1))
    assert scene.settled == ["ack"]
    assert scene.events == ["task-started", "task-succeeded"]
    assert len(scene.book) == 0


def test_a_slot_that_begins_with_a_message_is_told_once_for_the_numbers() -> None:
    """Here and not in the slot: a child that is killed takes what it counted along."""
    scene = Scene()
    begun: list[Delivery] = []
    scene.book.begun = begun.append
    scene.accept()
    scene.fail(WorkerLostError("exitcode 9"))
    assert begun == [scene.delivery]


def test_a_failure_that_is_stored_is_acked() -> None:
    scene = Scene()
    scene.fail(InferenceTimeout("slow"), stored=True)
    assert scene.settled == ["ack"]
    assert scene.events == ["task-failed"]


def test_what_was_published_again_is_acked() -> None:
    scene = Scene()
    scene.fail(Ignore(), stored=True)
    assert scene.settled == ["ack"]


@pytest.mark.parametrize("stored", [True, False])
def test_a_task_that_could_not_store_or_publish_goes_back_uncounted_a_second_later(stored: bool) -> None:
    scene = Scene()
    scene.fail(Reject("result_store_unavailable", requeue=True), stored=stored)
    assert scene.settled == [], "a store that is away is no reason to ask for it a hundred times a second"
    scene.background.pop()()
    assert (scene.settled, scene.sleeps) == (["hand_back"], [1.0])
    assert scene.events == ["task-rejected"]
    assert scene.concluded == ["requeued"]


@pytest.mark.parametrize(
    "error",
    [
        WorkerLostError("exit"),
        SystemExit(1),
        KeyboardInterrupt(),
        Terminated(9),
        ValueError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_task_that_broke_off_goes_back_counted(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Stock acks it, or looks into the result store first, in the worker's main loop."""
    scene = Scene()
    scene.backend.away = 1
    scene.fail(error)
    assert scene.settled == ["requeue"]
    assert scene.events == ["task-rejected"]
    assert scene.concluded == ["requeued"]
    assert scene.backend.away == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize("error", [ConnectionError(SECRET), TypeError(SECRET)], ids=["store", "bug"])
def test_an_error_around_the_task_is_not_taken_for_an_outcome(error: Exception) -> None:
    """Stock reports a store that is away as the task's failure, and acks (celery#8588)."""
    scene = Scene()
    scene.fail(error, stored=True)
    assert scene.settled == ["requeue"]


def test_a_failure_of_ours_that_never_passed_the_tracer_is_not_acked() -> None:
    scene = Scene()
    scene.fail(InferenceTimeout("slow"))
    assert scene.settled == ["requeue"]


@pytest.mark.parametrize(("soft", "settled"), [(True, []), (False, ["requeue"])])
def test_a_remote_time_limit_gives_the_message_back(soft: bool, settled: list[str]) -> None:
    scene = Scene()
    scene.request.on_timeout(soft, 1)
    assert scene.settled == settled
    state.task_ready(scene.request)


def test_what_celery_cannot_schedule_is_put_aside() -> None:
    scene = Scene()
    scene.request.reject(requeue=False)
    assert scene.settled == ["put_aside"]
    assert scene.leases.deaths[0].code == "internal"
    state.reset_state()


def test_a_message_is_settled_once() -> None:
    scene = Scene()
    scene.request.acknowledge()
    scene.request.reject(requeue=True)
    scene.request.acknowledge()
    assert scene.settled == ["ack"]
    state.reset_state()


def test_a_delivery_too_many_runs_as_dead_and_is_put_aside() -> None:
    scene = Scene(number=MAX_DELIVERIES + 1)
    assert scene.request.request_dict["forwarder_dead"] == MAX_DELIVERIES + 1
    scene.fail(DeadLettered("delivered 5 times without an outcome"), stored=True)
    assert scene.settled == ["put_aside"]
    (death,) = scene.leases.deaths
    assert (death.code, death.queue, death.deliveries) == ("dead_lettered", "q", MAX_DELIVERIES + 1)
    assert datetime.fromisoformat(death.at).tzinfo is not None
    assert SECRET not in repr(death)


def test_a_dead_task_whose_result_is_there_after_all_is_acked() -> None:
    scene = Scene(number=MAX_DELIVERIES + 1)
    scene.fail(Ignore(), stored=True)
    assert scene.settled == ["ack"]


def test_the_last_delivery_that_is_allowed_is_an_ordinary_one() -> None:
    assert "forwarder_dead" not in Scene(number=MAX_DELIVERIES).request.request_dict
    state.reset_state()


def test_a_producer_cannot_declare_its_task_dead() -> None:
    assert "forwarder_dead" not in Scene(headers={"forwarder_dead": 9}).request.request_dict
    state.reset_state()
