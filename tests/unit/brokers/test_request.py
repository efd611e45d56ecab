"""What becomes of a message, for each way in which its task can end."""

from __future__ import annotations

import errno
import inspect
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery import Celery
from celery.app.task import Context
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.events.dispatcher import EventDispatcher
from celery.exceptions import Ignore, InvalidTaskError, Reject, TaskRevokedError
from celery.worker import state
from celery.worker.request import Request, create_request_cls  # type: ignore[attr-defined]  # the stubs lack it
from kombu.message import Message

from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.request import ForwardRequest
from forwarder.forwarding.errors import SHORTAGE, DeadLettered, InferenceTimeout
from forwarder.forwarding.task import ForwardTask

MAX_DELIVERIES = 5
SECRET = "payload-text"


class FakeLeases:
    """Notes how each delivery was settled."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.settled: list[str] = []
        self.deaths: list[Death] = []

    def receive(self, message: Any) -> Delivery:
        return Delivery(tag="tag", queue="q", number=self.number, confirmed_s=0.0, message=message)

    def ack(self, delivery: Delivery) -> bool:
        self.settled.append("ack")
        return True

    def requeue(self, delivery: Delivery) -> bool:
        self.settled.append("requeue")
        return True

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        self.settled.append("hand_back")
        return []

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        self.settled.append("put_aside")
        self.deaths.append(death)
        return True


class FakeBackend:
    """The result store: ``found`` is what it holds, ``away`` for how many calls it fails."""

    def __init__(self) -> None:
        self.found: object = None
        self.away = 0
        self.revoked: list[str] = []

    def find(self, task_id: str) -> object:
        if self.away:
            self.away -= 1
            raise ConnectionError(SECRET)
        return self.found

    def mark_as_revoked(self, task_id: str, reason: str, **_: Any) -> None:
        self.revoked.append(reason)


class FakePool:
    def __init__(self) -> None:
        self.killed: list[tuple[Any, int]] = []
        self.applied: list[str] = []
        self.sent: list[tuple[Any, ...]] = []

    def terminate_job(self, pid: Any, number: int) -> None:
        self.killed.append((pid, number))

    def apply_async(self, target: Any, *, args: tuple[Any, ...], correlation_id: str, **_: Any) -> object:
        self.applied.append(correlation_id)
        self.sent.append(args)
        return self


class Scene:
    """One request as Celery's strategy makes it, with fakes around it."""

    ids = itertools.count()

    def __init__(
        self, *, number: int = 1, headers: dict[str, Any] | None = None, slots_are_here: bool = False
    ) -> None:
        self.leases = FakeLeases(number)
        self.book = LeaseBook(lambda: self.leases)  # type: ignore[arg-type,return-value]
        self.pardoned: list[Delivery] = []
        self.book.pardon = self.pardoned.append
        self.backend = FakeBackend()
        self.pool = FakePool()
        self.events: list[str] = []
        self.sleeps: list[float] = []
        self.background: list[Callable[[], None]] = []
        app = Celery("test", set_as_current=False, broker="memory://")
        app.conf.update(
            forwarder_book=self.book,
            forwarder_max_deliveries=MAX_DELIVERIES,
            forwarder_store=self.backend,
            forwarder_slots_are_here=slots_are_here,
        )
        parts: Any = None
        app.register_task(
            ForwardTask(
                name="forwarder.forward",
                parts=parts,
                track_started=False,
                max_deliveries=MAX_DELIVERIES,
                visibility_timeout_s=60,
            )
        )
        self.task = app.tasks["forwarder.forward"]
        self.request = self._request(app, headers or {})

    def _request(self, app: Celery, headers: dict[str, Any]) -> Any:
        task_id = f"id-{next(self.ids)}"
        message: Any = Message(
            body='[["payload-text"], {}, {}]',
            content_type="application/json",
            content_encoding="utf-8",
            headers={"id": task_id, "task": "forwarder.forward", **headers},
            delivery_info={},
            properties={},
        )
        message.delivery = self.delivery = self.book.open(message)
        eventer = SimpleNamespace(enabled=True, groups=set(), send=lambda kind, **_: self.events.append(kind))
        kind = create_request_cls(ForwardRequest, self.task, self.pool, "here", eventer, app=app)
        request = kind(message, app=app, hostname="here", eventer=eventer, task=self.task)
        request.in_background = self.background.append
        request.sleep = self.sleeps.append
        request.uniform = lambda low, high: (low + high) / 2
        state.task_reserved(request)
        return request

    def accept(self) -> None:
        self.request.on_accepted(77, 0.0)

    def fail(self, error: BaseException, *, stored: bool = False) -> None:
        """End the task with an error: out of the tracer, or around it."""
        try:
            raise error
        except BaseException:  # noqa: BLE001 - whatever it is, Celery hands it over like this
            info = ExceptionInfo()
        if stored:
            self.request.on_success((1, info, 0.1))
        else:
            self.request.on_failure(info)

    @property
    def settled(self) -> list[str]:
        return self.leases.settled


@pytest.fixture(autouse=True)
def _no_requests_left() -> Iterator[None]:
    yield
    leaked = dict(state.requests)
    state.reset_state()
    assert not leaked, "Celery still counts the request as reserved or active"


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


def test_a_success_is_acked_through_the_book() -> None:
    scene = Scene()
    scene.accept()
    scene.request.on_success((0, None, 0.1))
    assert scene.settled == ["ack"]
    assert scene.events == ["task-started", "task-succeeded"]
    assert len(scene.book) == 0


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
def test_a_task_that_could_not_store_or_publish_goes_back_uncounted(stored: bool) -> None:
    scene = Scene()
    scene.fail(Reject("result_store_unavailable", requeue=True), stored=stored)
    assert scene.settled == ["hand_back"]
    assert scene.events == ["task-rejected"]


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
    assert scene.backend.away == 1
    assert SECRET not in caplog.text


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


def test_a_producers_time_limits_are_left_out() -> None:
    assert Scene(headers={"timelimit": [1, 1]}).request.time_limits == (None, None)
    state.reset_state()


def test_an_expired_task_is_left_to_the_use_case() -> None:
    scene = Scene(headers={"expires": "2001-01-01T00:00:00+00:00"})
    assert scene.request.revoked() is False
    state.reset_state()


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


# --- dead letters ---------------------------------------------------------------------------


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


# --- abandon --------------------------------------------------------------------------------


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


# --- revoke ---------------------------------------------------------------------------------


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
    assert scene.backend.revoked == []
    assert scene.settled == ["ack"]


# --- Celery's private names -----------------------------------------------------------------


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
    [{"stamped_headers": 5}, {"stamped_headers": ["a"], "stamps": 5}, {"eta": "0001-01-01T00:00:00+14:00"}],
)
def test_headers_that_would_cost_a_slot_or_be_logged_are_refused_at_once(headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidTaskError):
        Scene(headers=headers)


def test_a_task_that_has_ended_is_not_abandoned_any_more() -> None:
    """Its slot may run another task by now."""
    scene = Scene()
    scene.accept()
    scene.request.on_success((0, None, 0.1))
    scene.request.abandon(scene.pool)
    assert scene.pool.killed == []


def test_nothing_that_celery_shows_of_a_task_has_its_payload() -> None:
    """Its producer copied the payload into two headers, as Celery does."""
    request = Scene(headers={"argsrepr": f"({SECRET},)", "kwargsrepr": SECRET}).request
    state.task_ready(request)
    shown = [request.info(), request.info(safe=False), request.argsrepr, request.kwargsrepr, repr(request)]
    assert SECRET not in repr(shown)
    # What a slot's tracer writes into its log beside an error.
    assert SECRET not in request.request_dict["argsrepr"] + request.request_dict["kwargsrepr"]
