"""Celery's side of the task, run by Celery's own tracer against fakes."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from kombu import Queue

from forwarder.forwarding.errors import InferenceBusy, InvalidPayload
from forwarder.forwarding.forwarder import GoBack, TaskCall
from forwarder.forwarding.ports import Completion
from forwarder.forwarding.task import ForwardTask
from forwarder.results.single_write import SingleWriteBackend
from forwarder.telemetry.metrics import ProcessMetrics

SECRET = "payload-text"


class Backend(SingleWriteBackend):
    """Notes what is stored, in the story's common list.

    ``finds`` is a script of what is read, the last line repeats; ``pardoned`` is what
    stands beside it; ``away`` is what an outage raises, at reads, at writes or at both.
    """

    value_bytes_max = 10_000
    story: list[Any]
    away: tuple[str, ...] = ()
    pardoned: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.finds: list[str | None] = [None]
        self.reads = 0

    def set(self, key: Any, value: Any) -> None:
        if "write" in self.away:
            raise ConnectionError
        self.story.append(("stored", json.loads(value)))

    def get(self, key: Any) -> str | None:
        if "read" in self.away:
            raise ConnectionError
        if key == b"celery-task-meta-t1-pardons":
            return self.pardoned
        self.reads += 1
        return self.finds.pop(0) if len(self.finds) > 1 else self.finds[0]


class Scene:
    """One task, its use case, and a story of what happened in which order."""

    max_deliveries = 5
    visibility_timeout_s = 60.0

    def __init__(self, outcome: Any, queues: Sequence[str] = ("q",), track_started: bool = False) -> None:
        self.now_s = 1000.0
        self.takes_s = 0.0
        self.story: list[Any] = []
        self.calls: list[TaskCall] = []
        self.metrics = ProcessMetrics()
        self.app = Celery("test", set_as_current=False, broker="memory://")
        self.app.conf.task_queues = [Queue(name) for name in queues]
        self.app.conf.forwarder_make_queue = lambda name: Queue(name, routing_key=name)
        self.backend = Backend(app=self.app)
        self.backend.story = self.story
        self.app._backend_cache = self.backend  # type: ignore[attr-defined]  # what app.backend returns
        self.outcome = outcome
        self.parts = SimpleNamespace(forwarder=self, hooks=self, metrics=self.metrics)
        self.task = ForwardTask(
            name="forwarder.forward",
            parts=lambda: self.parts,
            track_started=track_started,
            max_deliveries=self.max_deliveries,
            visibility_timeout_s=self.visibility_timeout_s,
            monotonic=lambda: self.now_s,
        )
        self.app.register_task(self.task)

    def forward(self, call: TaskCall) -> Any:
        self.calls.append(call)
        self.story.append(("asked", call.task_id))
        self.now_s += self.takes_s
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def waited_s(self, arrival: object) -> float | None:
        return 2.0 if arrival == "arrival" else None

    def run(self, completion: Completion) -> None:
        self.story.append(("hook", completion))

    def deliver(
        self,
        *args: Any,
        kwargs: dict[str, Any] | None = None,
        retries: int = 0,
        redelivered: bool = False,
        request_headers: Mapping[str, Any] = {},
    ) -> Any:
        info = {
            "routing_key": "q",
            "exchange": "",
            "priority": 3,
            "redelivered": redelivered,
            "sqs_message": {"Body": SECRET},
        }
        headers = {"forwarder_queue": "q", **request_headers}
        request = {"id": "t1", "retries": retries, "delivery_info": info, **headers}
        task: Any = self.task
        task.__trace__ = build_tracer(task.name, task, app=self.app)
        return task.__trace__("t1", list(args), kwargs or {}, request)


def test_hooks_run_after_the_result_is_stored() -> None:
    scene = Scene({"result": 1, "status_code": 200})
    scene.deliver({"args": 1}, "arrival")
    [_, (first, meta), (second, completion)] = scene.story
    assert (first, meta["status"], meta["result"]) == ("stored", "SUCCESS", {"result": 1, "status_code": 200})
    assert second == "hook"
    assert completion.succeeded
    assert (completion.task_id, completion.payload) == ("t1", {"args": 1})
    assert scene.metrics.value("forwarder_tasks_total", queue="q", outcome="success") == 1
    assert scene.metrics.snapshot()["forwarder_task_seconds{queue=q}_sum"] == 2.0


def test_a_failed_task_has_its_hooks_too() -> None:
    scene = Scene(InvalidPayload("no good"))
    scene.deliver({"args": 1})
    [_, (_, meta), (_, completion)] = scene.story
    assert meta["status"] == "FAILURE"
    assert json.loads(meta["result"]["custom"]) == completion.response
    assert completion.response["code"] == "invalid_payload"
    assert not completion.succeeded


def test_a_result_that_cant_be_stored_is_the_same_failure_for_the_store_and_the_hooks() -> None:
    scene = Scene({"result": "x" * 20_000})
    scene.deliver({"args": 1})
    [_, (_, meta), (_, completion)] = scene.story
    assert json.loads(meta["result"]["custom"])["code"] == "result_too_large"
    assert completion.response["code"] == "result_too_large"
    assert not completion.succeeded


def test_a_bug_ends_the_task_with_a_code_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(KeyError(SECRET))
    scene.deliver({"args": 1})
    [_, (_, meta), (_, completion)] = scene.story
    assert completion.response == {
        "error": "internal error: KeyError",
        "error_metadata": "",
        "code": "internal",
    }
    assert SECRET not in json.dumps(meta)
    assert SECRET not in caplog.text
    assert "task_bug task_id=t1 error=KeyError at=" in caplog.text
    assert "test_task.py:" in caplog.text


@pytest.mark.parametrize(
    ("args", "kwargs", "payload"),
    [
        (({"x": 1},), {}, {"x": 1}),
        (({"x": 1}, "arrival", "more"), {"trace": 1}, {"x": 1}),
        ((), {"payload": {"x": 1}, "arrival_timestamp": "arrival"}, {"x": 1}),
    ],
)
def test_the_payload_is_the_first_argument_or_named(args: Any, kwargs: Any, payload: Any) -> None:
    scene = Scene(None)
    scene.deliver(*args, kwargs=kwargs)
    assert scene.calls[0].payload == payload


def test_a_task_without_arguments_is_an_invalid_payload() -> None:
    scene = Scene(None)
    scene.deliver()
    assert scene.calls == []
    assert json.loads(scene.story[0][1]["result"]["custom"])["code"] == "invalid_payload"


def test_trace_context_is_passed_on_and_what_no_header_can_hold_is_not() -> None:
    scene = Scene(None)
    context = {"traceparent": "00-ab-cd-01", "x-datadog-trace-id": "7", "tracestate": "a\r\nb", "baggage": 5}
    scene.deliver({"x": 1}, request_headers=context)
    assert scene.calls[0].headers == {"traceparent": "00-ab-cd-01", "x-datadog-trace-id": "7"}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    def send(self: ForwardTask, args: Any = None, kwargs: Any = None, **options: Any) -> None:
        sent.append(options | {"args": args})

    monkeypatch.setattr(ForwardTask, "apply_async", send)
    return sent


def test_a_task_that_goes_back_is_published_one_retry_older_and_stores_retry_first(
    published: list[dict[str, Any]],
) -> None:
    scene = Scene(GoBack(InferenceBusy("busy")))
    scene.deliver({"args": SECRET}, retries=4)
    assert [meta["status"] for kind, meta in scene.story if kind == "stored"] == ["RETRY"]
    [options] = published
    assert options["retries"] == 5
    assert options["task_id"] == "t1"
    assert options["priority"] == 3
    assert options["queue"].name == "q"
    assert not {"exchange", "routing_key"} & set(options)
    assert "sqs_message" not in options
    assert SECRET not in options["argsrepr"]
    assert scene.metrics.value("forwarder_tasks_total", queue="q", outcome="requeued") == 1


def test_a_route_that_the_producer_made_up_does_not_lead_the_task_astray(
    published: list[dict[str, Any]],
) -> None:
    """On Redis any exchange and routing key may stand in a message; one that leads nowhere drops it."""
    scene = Scene(GoBack(InferenceBusy("busy")), queues=["other", "another"])
    scene.deliver({"args": 1}, request_headers={"forwarder_queue": "another"})
    assert published[0]["queue"].name == "another"


def test_a_task_goes_back_to_a_queue_that_was_added_after_its_child_was_forked() -> None:
    scene = Scene(GoBack(InferenceBusy("busy")))
    scene.app.conf.task_create_missing_queues = False
    traced = scene.deliver({"args": 1}, retries=1, request_headers={"forwarder_queue": "added"})
    assert traced.info.state == "IGNORED"
    with scene.app.connection_for_read() as connection:
        message: Any = connection.SimpleQueue("added").get_nowait()
    assert message.headers["retries"] == 2


def test_a_task_that_cant_go_back_is_requeued_and_not_published(
    published: list[dict[str, Any]],
) -> None:
    scene = Scene(GoBack(InferenceBusy("busy")))
    scene.backend.away = ("write",)
    traced = scene.deliver({"args": 1})
    assert published == []
    assert traced.info.state == "REJECTED"
    assert traced.info.retval.requeue is True
    # Whoever gives its message back counts that.
    assert not scene.metrics.value("forwarder_tasks_total", queue="q", outcome="requeued")


def test_a_task_that_goes_back_starts_its_count_of_deliveries_anew(published: list[dict[str, Any]]) -> None:
    scene = Scene(GoBack(InferenceBusy("busy")))
    headers = {"x-forwarder-deliveries": 4, "forwarder_dead": None, "traceparent": "00-ab-cd-01"}
    scene.deliver({"args": 1}, request_headers=headers)
    assert published[0]["headers"] == {"traceparent": "00-ab-cd-01"}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_the_worker_lacks_is_not_the_tasks_failure(number: int) -> None:
    scene = Scene(OSError(number, SECRET))
    rejected = scene.deliver({"args": 1}).info.retval
    assert (rejected.reason, rejected.requeue) == ("worker_shortage", True)
    assert [kind for kind, _ in scene.story] == ["asked"]
