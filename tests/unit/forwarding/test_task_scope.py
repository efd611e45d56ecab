"""The record of a task, its steps, its span and its last line in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from celery.exceptions import Reject

from forwarder.forwarding.errors import InvalidPayload
from forwarder.forwarding.record import CURRENT, StepKind, TaskRecord, step
from forwarder.forwarding.task_call import trace_headers
from forwarder.forwarding.task_scope import TaskScope

REQUEST = {"id": "t-1", "forwarder_queue": "q", "forwarder_deliveries": 3, "retries": 1}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Spans:
    """Notes every span: its name, its tags, and how it ended."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any], str]] = []
        self.headers: Mapping[str, str] = {}

    def begin_task(self, record: TaskRecord, headers: Mapping[str, str]) -> NotedSpan:
        self.headers = headers
        return NotedSpan(self, "task")

    def begin_step(self, kind: StepKind, resource: str) -> NotedSpan:
        return NotedSpan(self, f"{kind} {resource}")


class NotedSpan:
    def __init__(self, spans: Spans, name: str) -> None:
        self._spans, self._name, self._tags = spans, name, dict[str, Any]()

    def tag(self, name: str, value: str | float) -> None:
        self._tags[name] = value

    def headers(self) -> Mapping[str, str]:
        return {"traceparent": self._name}

    def end(self, error: BaseException | None = None) -> None:
        self._spans.told.append((self._name, self._tags, type(error).__name__))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def current() -> TaskRecord:
    record = CURRENT.get()
    assert record is not None
    return record


def run(tracer: Any, clock: Clock, *, spans: Spans | None = None, request: Any = REQUEST) -> Any:
    return TaskScope(tracer, tracing=spans, monotonic=clock)("t-1", [], {}, request)


def test_the_last_line_tells_where_the_time_went(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def tracer(*_: Any) -> str:
        record = current()
        record.wait_s = 0.5
        clock.now_s += 1
        for status, took_s in ((503, 2), (200, 4)):
            with step("inference", "predict") as asking:
                asking.asked(10)
                clock.now_s += took_s
                asking.answered(status, 20)
        with step("store", "write"):
            clock.now_s += 0.25
        with step("hook", "callback"):
            clock.now_s += 0.125
        record.outcome = "success"
        return "what Celery's tracer returns"

    caplog.set_level(logging.INFO)
    assert run(tracer, clock) == "what Celery's tracer returns"
    assert caplog.messages == [
        "task_done task_id=t-1 queue=q outcome=success deliveries=3 retries=1 status_code=200 tries=2 "
        "wait_s=0.5 inference_s=6.0 store_s=0.25 hooks_s=0.125 run_s=7.375 total_s=7.875 "
        "request_bytes=10 response_bytes=20"
    ]


def test_what_is_not_known_is_told_as_none(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(lambda *_: None, clock, request={"deliveries": "x", "retries": "y"})
    [line] = caplog.messages
    assert "deliveries=1 retries=0 status_code=None tries=0 wait_s=None" in line
    assert line.endswith("total_s=None request_bytes=None response_bytes=None")


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        ("success", "task_done"),
        ("invalid_payload", "task_done"),
        ("already_success", "task_already_done"),
        ("requeued", "task_requeued"),
    ],
)
def test_each_outcome_has_its_line(
    outcome: str, event: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def tracer(*_: Any) -> None:
        current().outcome = outcome

    caplog.set_level(logging.INFO)
    run(tracer, clock)
    assert caplog.text.count(f" {event} task_id=t-1 queue=q outcome={outcome} ") == 1


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (Reject("result_store_unavailable"), "task_requeued task_id=t-1 queue=q outcome=requeued"),
        (SystemExit(), "task_cut_off task_id=t-1 queue=q outcome=requeued"),
    ],
)
def test_a_task_that_is_broken_off_has_its_line_too(
    error: BaseException, begins: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def tracer(*_: Any) -> None:
        raise error

    caplog.set_level(logging.INFO)
    with pytest.raises(type(error)):
        run(tracer, clock)
    assert caplog.messages[0].startswith(begins)
    assert CURRENT.get() is None


def test_spans_tell_the_same_and_a_steps_error_is_its_own(clock: Clock) -> None:
    spans = Spans()

    def tracer(*_: Any) -> None:
        with step("inference", "predict") as asking:
            asking.asked(10)
            assert asking.headers({"baggage": "b", "traceparent": "m"}) == {
                "baggage": "b",
                "traceparent": "inference predict",
            }
            asking.answered(200, 20)
        with pytest.raises(ValueError, match="x"), step("hook", "callback"):
            raise ValueError("x")
        record = current()
        record.outcome, record.error = "invalid_payload", InvalidPayload("x")

    run(tracer, clock, spans=spans, request={**REQUEST, "traceparent": "m"})
    inference = {
        "http.request.content_length": 10,
        "http.status_code": "200",
        "http.response.content_length": 20,
    }
    assert spans.told == [
        ("inference predict", inference, "NoneType"),
        ("hook callback", {}, "ValueError"),
        (
            "task",
            {"forwarder.outcome": "invalid_payload", "forwarder.tries": 1, **inference},
            "InvalidPayload",
        ),
    ]
    assert spans.headers == {"traceparent": "m"}


def test_a_step_outside_of_a_task_does_nothing() -> None:
    with step("store", "write") as writing:
        writing.asked(1)
        writing.answered(200, 1)
        assert writing.headers({"a": "b"}) == {"a": "b"}


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ({"traceparent": "top"}, {"traceparent": "top"}),
        ({"headers": {"traceparent": "nested"}}, {"traceparent": "nested"}),
        ({"headers": {"traceparent": "nested"}, "x-datadog-trace-id": "1"}, {"traceparent": "nested"}),
        ({"headers": {"x-other": "1"}, "traceparent": "top"}, {"traceparent": "top"}),
        ({"headers": None}, {}),
        ({"headers": ["traceparent"], "traceparent": 5, "baggage": "a\nb"}, {}),
    ],
)
def test_trace_context_is_found_where_datadogs_and_opentelemetrys_producers_write_it(
    request_: dict[str, Any], found: dict[str, str]
) -> None:
    assert trace_headers(request_) == found
