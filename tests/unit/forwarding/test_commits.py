"""A task whose outcome is stored is never run again, and what a lost store does, by Celery's own tracer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.exceptions import Reject

from forwarder.forwarding.commit import find_committed
from forwarder.forwarding.errors import InferenceBusy, InferenceTimeout, InvalidPayload
from forwarder.forwarding.forwarder import GoBack
from forwarder.forwarding.ports import Stored
from tests.unit.forwarding.test_task import Scene

DONE = {"result": 1, "status_code": 200}
SUCCESS = json.dumps({"status": "SUCCESS", "result": DONE})


def failure(code: str) -> str:
    custom = json.dumps({"error": "no", "error_metadata": "", "code": code})
    return json.dumps({"status": "FAILURE", "result": {"exc_type": "X", "exc_message": [], "custom": custom}})


def kinds(scene: Scene) -> list[str]:
    return [kind for kind, _ in scene.story]


@pytest.mark.parametrize(
    "stored", [SUCCESS, failure("invalid_payload"), '{"status": "REVOKED", "result": {}}']
)
@pytest.mark.parametrize("redelivered", [False, True])
def test_what_is_committed_is_neither_asked_for_nor_stored_again(stored: str, redelivered: bool) -> None:
    scene = Scene(DONE)
    scene.backend.finds = [stored]
    traced = scene.deliver({"args": 1}, redelivered=redelivered)
    assert not {"asked", "stored"} & set(kinds(scene))
    assert traced.info.state == "IGNORED"  # Celery then acks


@pytest.mark.parametrize(
    ("stored", "redelivered", "response"),
    [
        (SUCCESS, True, DONE),
        (SUCCESS, False, None),
        (
            failure("inference_timeout"),
            True,
            {"error": "no", "error_metadata": "", "code": "inference_timeout"},
        ),
        ('{"status": "REVOKED", "result": {}}', True, None),
    ],
)
def test_only_a_redelivery_owes_hooks_and_they_get_the_stored_outcome(
    stored: str, redelivered: bool, response: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(DONE)
    scene.backend.finds = [stored]
    with caplog.at_level("INFO"):
        scene.deliver({"args": 1}, redelivered=redelivered)
    hooks = [completion for kind, completion in scene.story if kind == "hook"]
    assert [completion.response for completion in hooks] == ([response] if response else [])
    if hooks:
        assert hooks[0].payload == {"args": 1}
        assert hooks[0].succeeded == (response is DONE)
    assert caplog.text.count("task_already_done task_id=t1 queue=q") == 1


@pytest.mark.parametrize(
    ("seen", "reads"),
    [
        ({}, 0),
        ({"redelivered": True}, 1),
        ({"retries": 1}, 1),
        ({"request_headers": {"forwarder_dead": 6}}, 1),
    ],
    ids=["first", "redelivered", "sent back", "dead"],
)
def test_where_the_first_outcome_stays_only_a_message_that_was_seen_before_is_looked_for(
    seen: dict[str, Any], reads: int
) -> None:
    scene = Scene(DONE)
    scene.backend.looks_first = False
    scene.deliver({"args": 1}, **seen)
    assert scene.backend.reads == reads
    scene.backend.looks_first = True
    scene.deliver({"args": 1}, **seen)
    assert scene.backend.reads == reads + 1


@pytest.mark.parametrize("stored", [None, failure("dead_lettered"), '{"status": "RETRY", "result": {}}'])
def test_what_is_not_final_is_run(stored: str | None) -> None:
    scene = Scene(DONE)
    scene.backend.finds = [stored]
    scene.deliver({"args": 1}, redelivered=True)
    assert kinds(scene) == ["asked", "stored", "hook"]


@pytest.mark.parametrize(
    ("code", "committed"),
    [
        (None, True),
        ("expired", True),
        ("internal", True),
        ("dead_lettered", False),
        ("invalid_message", False),
        ("unknown_task", False),
    ],
)
def test_a_failure_that_was_put_aside_is_not_final(code: str | None, committed: bool) -> None:
    class Held:
        looks_first = True

        def find(self, task_id: str) -> Stored | None:
            return Stored(state="FAILURE", code=code)

    assert (find_committed(Held(), "t1") is not None) == committed


@pytest.mark.parametrize("outcome", [InferenceTimeout("slow"), GoBack(InferenceBusy("busy"))])
def test_a_failed_try_does_not_replace_what_another_delivery_committed_meanwhile(outcome: Exception) -> None:
    scene = Scene(outcome)
    scene.backend.finds = [None, SUCCESS]
    traced = scene.deliver({"args": 1}, redelivered=True)
    assert kinds(scene) == ["asked", "hook"]
    assert traced.info.state == "IGNORED"


def test_a_dead_task_fails_before_anything_else_is_done_and_has_its_hooks() -> None:
    scene = Scene(DONE)
    scene.deliver("not even an object", request_headers={"forwarder_dead": 6}, redelivered=True)
    [(_, meta), (_, completion)] = scene.story
    assert json.loads(meta["result"]["custom"])["code"] == "dead_lettered"
    assert "6 times" in completion.response["error"]


def test_a_dead_task_whose_result_is_there_is_done_and_its_hooks_are_left_alone() -> None:
    """They may be what it dies of."""
    scene = Scene(DONE)
    scene.backend.finds = [SUCCESS]
    traced = scene.deliver({"args": 1}, request_headers={"forwarder_dead": 6}, redelivered=True)
    assert scene.story == []
    assert traced.info.state == "IGNORED"


def test_a_task_that_was_not_to_blame_for_what_is_above_the_limit_is_run_as_any_other() -> None:
    scene = Scene(DONE)
    scene.backend.pardoned = "1"
    scene.deliver({"args": 1}, request_headers={"forwarder_dead": 6}, redelivered=True)
    assert kinds(scene) == ["asked", "stored", "hook"]


@pytest.mark.parametrize(("number", "pardoned"), [(7, 1), (26, 20), (26, 1000)])
def test_a_task_that_was_too_often_to_blame_is_dead_and_no_more_is_pardoned_than_the_bound(
    number: int, pardoned: int
) -> None:
    scene = Scene(DONE)
    scene.backend.pardoned = str(pardoned)
    scene.deliver({"args": 1}, request_headers={"forwarder_dead": number}, redelivered=True)
    assert kinds(scene) == ["stored", "hook"]
    assert "6 times" in scene.story[1][1].response["error"]


def test_a_pardoned_task_whose_result_is_there_is_owed_its_hooks() -> None:
    scene = Scene(DONE)
    scene.backend.pardoned = "1"
    scene.backend.finds = [SUCCESS]
    scene.deliver({"args": 1}, request_headers={"forwarder_dead": 6}, redelivered=True)
    assert kinds(scene) == ["hook"]


def test_the_second_failure_too_many_is_stored_without_hooks_which_may_be_what_the_task_dies_of() -> None:
    scene = Scene(DONE)
    scene.deliver({"args": 1}, request_headers={"forwarder_dead": 7}, redelivered=True)
    assert kinds(scene) == ["stored"]


def test_a_task_within_the_limit_does_not_ask_for_pardons() -> None:
    scene = Scene(DONE)
    scene.backend.pardoned = "not even a number"
    scene.deliver({"args": 1}, redelivered=True)
    assert kinds(scene) == ["asked", "stored", "hook"]


def test_a_call_that_outlasted_the_lease_does_not_replace_what_a_peer_committed_meanwhile() -> None:
    scene = Scene(DONE)
    scene.takes_s = 60.0
    scene.backend.finds = [None, SUCCESS]
    traced = scene.deliver({"args": 1})
    assert kinds(scene) == ["asked"]
    assert traced.info.state == "IGNORED"


@pytest.mark.parametrize(("takes_s", "reads"), [(59.9, 1), (60.0, 2)])
def test_only_a_call_that_outlasted_the_lease_looks_a_second_time(takes_s: float, reads: int) -> None:
    scene = Scene(DONE)
    scene.takes_s = takes_s
    scene.deliver({"args": 1})
    assert kinds(scene) == ["asked", "stored", "hook"]
    assert scene.backend.reads == reads


def test_started_is_stored_after_the_look_for_the_result_and_never_over_it() -> None:
    scene = Scene(DONE, track_started=True)
    scene.deliver({"args": 1})
    assert [meta["status"] for kind, meta in scene.story if kind == "stored"] == ["STARTED", "SUCCESS"]
    again = Scene(DONE, track_started=True)
    again.backend.finds = [SUCCESS]
    again.deliver({"args": 1})
    assert again.story == []


def test_the_gpu_is_not_paid_while_the_store_is_away() -> None:
    scene = Scene(DONE)
    scene.backend.away = ("read",)
    traced = scene.deliver({"args": 1})
    assert scene.story == []
    assert traced.info.retval.requeue is True


@pytest.mark.parametrize("outcome", [DONE, InvalidPayload("no"), KeyError("bug")])
@pytest.mark.parametrize("track_started", [False, True])
def test_every_outcome_that_cant_be_stored_rejects_its_message_and_runs_no_hook(
    outcome: Any, track_started: bool
) -> None:
    """The pool hands a Reject that leaves the tracer to the request, which sends the message back."""
    scene = Scene(outcome, track_started=track_started)
    scene.backend.away = ("write",)
    try:
        rejected = scene.deliver({"args": 1}).info.retval
    except Reject as error:
        rejected = error
    assert isinstance(rejected, Reject)
    assert rejected.args == ("result_store_unavailable", True)  # the second is: requeue
    assert "hook" not in kinds(scene)


def test_a_failure_outside_of_the_tasks_body_that_cant_be_stored_rejects_too() -> None:
    """A broken link makes Celery store the failure after it has left the task."""
    scene = Scene(DONE)
    scene.backend.away = ("write",)
    with pytest.raises(Reject), pytest.warns(RuntimeWarning):
        scene.deliver({"args": 1}, request_headers={"callbacks": [{"task": 5}]})


def test_a_failure_outside_of_the_tasks_body_is_a_failure_like_any_other() -> None:
    scene = Scene(DONE)
    with pytest.warns(RuntimeWarning):
        scene.deliver({"args": 1}, request_headers={"callbacks": [{"task": 5}]})
    [(_, meta)] = [told for told in scene.story if told[0] == "stored"]
    assert json.loads(meta["result"]["custom"])["code"] == "internal"
