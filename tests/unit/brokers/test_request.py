"""What a request tells its slot and everybody else, and which ones are never made."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from celery.app.task import Context
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.events.dispatcher import EventDispatcher
from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.request import Request, create_request_cls  # type: ignore[attr-defined]  # the stubs lack it

from tests.unit.brokers.request_scene import SECRET, Scene, no_requests_left


@pytest.fixture(autouse=True)
def _no_requests_left() -> Iterator[None]:
    with no_requests_left():
        yield


def test_a_slot_is_told_how_often_the_message_was_delivered_whatever_its_producer_wrote() -> None:
    request = Scene(number=3, headers={"forwarder_deliveries": 99}).request
    state.task_ready(request)
    assert request.request_dict["forwarder_deliveries"] == 3


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "00-1", "x-own": 1, "argsrepr": "...", "timelimit": [None, None]},
        {"headers": {"given": "1"}, "x-own": 1},
    ],
)
def test_custom_headers_are_those_that_celery_would_pick_out(headers: dict[str, Any]) -> None:
    """Celery's own way costs more than all the rest of a task's context."""
    request = Scene(headers=headers).request
    state.task_ready(request)
    picked = request.request_dict
    stock = Context({name: value for name, value in picked.items() if name != "headers"} | headers)
    assert picked["headers"] == (stock.headers or {})


@pytest.mark.parametrize(
    ("slots_are_here", "sent"),
    [
        (True, ([["payload-text"], {}, {}], None, None)),
        (False, ('[["payload-text"], {}, {}]', "application/json", "utf-8")),
    ],
)
def test_a_slot_in_this_process_gets_the_body_as_it_was_decoded(
    slots_are_here: bool, sent: tuple[Any, ...]
) -> None:
    scene = Scene(slots_are_here=slots_are_here)
    scene.request.execute_using_pool(scene.pool)
    state.task_ready(scene.request)
    assert scene.pool.sent[0][3:] == sent


def test_events_of_tasks_are_made_where_they_are_sent_and_as_soon_as_they_are() -> None:
    scene = Scene()
    groups = scene.request.eventer.groups = {"worker"}
    scene.request.send_event("task-started")
    assert scene.events == []
    groups.add("task")  # as remote control's "enable_events" does
    scene.request.send_event("task-started")
    assert scene.events == ["task-started"]
    assert "groups and group not in groups" in inspect.getsource(EventDispatcher.send)
    state.task_ready(scene.request)


def test_celerys_trace_takes_a_body_without_a_content_type_as_decoded() -> None:
    for trace in (fast_trace_task, trace_task_ret):
        assert "else:\n        args, kwargs, embed = body\n" in inspect.getsource(trace)


def test_a_producers_time_limits_are_left_out() -> None:
    assert Scene(headers={"timelimit": [1, 1]}).request.time_limits == (None, None)
    state.reset_state()


def test_an_expired_task_is_left_to_the_use_case() -> None:
    scene = Scene(headers={"expires": "2001-01-01T00:00:00+00:00"})
    assert scene.request.revoked() is False
    state.reset_state()


def test_the_private_parts_of_celerys_request_are_as_this_one_needs_them() -> None:
    """Replaced: ``_announce_revoked``. Used: three attributes, at the places that read them."""
    parameters = list(inspect.signature(Request._announce_revoked).parameters)  # type: ignore[attr-defined]
    assert parameters == ["self", "reason", "terminated", "signum", "expired"]
    for method in (Request.terminate, Request.revoked):
        assert "self._announce_revoked(" in inspect.getsource(method)
    assert "if self._already_revoked:\n            return True" in inspect.getsource(Request.revoked)
    assert "not self._already_cancelled and not self._already_revoked" in inspect.getsource(
        Request.on_failure
    )
    assert "self._terminate_on_ack is not None" in inspect.getsource(Request.on_accepted)
    assert "if self.revoked():" in inspect.getsource(create_request_cls)


@pytest.mark.parametrize("task_id", ["\ud800", "x" * 201])
def test_an_id_that_no_result_can_be_stored_under_is_refused_wherever_it_stands(task_id: str) -> None:
    """Protocol 1 has it in the body; Celery hands both over alike."""
    with pytest.raises(InvalidTaskError):
        Scene(headers={"id": task_id})


@pytest.mark.parametrize(
    "headers",
    [
        {"stamped_headers": 5},
        {"stamped_headers": [[]]},
        {"stamped_headers": ["a"], "stamps": 5},
        {"shadow": [1]},
        {"eta": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_headers_that_would_cost_a_slot_or_be_logged_are_refused_at_once(headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidTaskError):
        Scene(headers=headers)


NO_TASKS: list[Any] = [5, True, "x", {"a": 1}, [1], [[]], [{"args": []}], [{"task": 5}]]


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain"])
@pytest.mark.parametrize("follow_up", NO_TASKS)
def test_what_celery_could_not_send_after_the_task_is_refused_before_it(name: str, follow_up: Any) -> None:
    """Else the server is asked, and its answer is thrown away. Without the body's own, the headers' count."""
    with pytest.raises(InvalidTaskError):
        Scene(body=[[{}], {}, {name: follow_up}])
    with pytest.raises(InvalidTaskError):
        Scene(headers={name: follow_up}, body=[[{}], {}, None])
    with pytest.raises(InvalidTaskError):
        Scene(body={"args": [{}], "kwargs": {}, name: follow_up})  # protocol 1


@pytest.mark.parametrize("chord", [5, "x", [{"task": "t"}], {"a": 1}])
def test_a_chord_whose_end_is_no_task_is_refused(chord: Any) -> None:
    with pytest.raises(InvalidTaskError):
        Scene(body=[[{}], {}, {"chord": chord}])


@pytest.mark.parametrize(
    "embed",
    [
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
        {"callbacks": [{"task": "t"}], "errbacks": [], "chain": [{"task": "t"}], "chord": {"task": "t"}},
    ],
)
def test_what_celery_can_send_after_the_task_is_left_alone(embed: dict[str, Any]) -> None:
    """And nobody looks at a header which the body's own replaces."""
    request = Scene(headers={"callbacks": 5}, body=[[{}], {}, embed]).request
    state.task_ready(request)


def test_a_slot_in_this_process_gets_the_body_that_celery_makes_of_protocol_1() -> None:
    scene = Scene(
        slots_are_here=True, body={"args": [{}], "kwargs": {"a": 1}, "chord": None, "callbacks": None}
    )
    scene.request.execute_using_pool(scene.pool)
    state.task_ready(scene.request)
    (args, kwargs, _), *rest = scene.pool.sent[0][3:]
    assert (args, kwargs, rest) == ([{}], {"a": 1}, [None, None])


def test_nothing_that_celery_shows_of_a_task_has_its_payload() -> None:
    """Its producer copied the payload into two headers, as Celery does."""
    request = Scene(headers={"argsrepr": f"({SECRET},)", "kwargsrepr": SECRET}).request
    state.task_ready(request)
    shown = [request.info(), request.info(safe=False), request.argsrepr, request.kwargsrepr, repr(request)]
    assert SECRET not in repr(shown)
    # What a slot's tracer writes into its log beside an error.
    assert SECRET not in request.request_dict["argsrepr"] + request.request_dict["kwargsrepr"]
