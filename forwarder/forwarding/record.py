"""What is known about the task that runs: one record, for its log line, its spans and other log lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, Protocol, Self

#: What of a task is timed: calls of the inference server, of the result store, of the hooks.
StepKind = Literal["inference", "store", "hook"]

#: The outcome of a task that has none: it goes back to its queue.
REQUEUED = "requeued"


class Span(Protocol):
    """One part of a trace, begun when it was made."""

    def tag(self, name: str, value: str | float) -> None:
        """Add what is known about it. Never content of a payload or a response."""

    def headers(self) -> Mapping[str, str]:
        """Return the trace context for whoever is asked within it."""

    def end(self, error: BaseException | None = None) -> None:
        """End it, as failed by ``error``, of which only the class and the code are told. Never blocks."""


class Tracing(Protocol):
    """Makes the spans of tasks. Never blocks, never raises."""

    def begin_task(self, record: TaskRecord, headers: Mapping[str, str]) -> Span:
        """Begin a task's span in the trace that the message's headers name, or in one of its own."""

    def begin_step(self, kind: StepKind, resource: str) -> Span:
        """Begin a span within the task's."""


class TaskRecord:
    """One run of one task: whose it is, where its time went and how it ended.

    Times are in seconds. ``wait_s`` is from the arrival that the producer wrote to the
    start, None where it wrote none. ``status_code`` and the sizes are of the last call of
    the inference server, None where there was none. ``outcome`` is ``success``, the code of
    a failure, ``already_`` and what is stored, or ``requeued`` as long as it is none of
    these; ``error`` is what ended the task. Belongs to one greenlet or thread.
    """

    __slots__ = (
        "begun_s", "deliveries", "error", "monotonic", "outcome", "queue", "request_bytes", "response_bytes",
        "retries", "seconds", "status_code", "task_id", "tracing", "tries", "wait_s",
    )  # fmt: skip

    def __init__(
        self,
        *,
        task_id: str,
        queue: str = "unknown",
        deliveries: int = 1,
        retries: int = 0,
        tracing: Tracing | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task_id = task_id
        self.queue = queue
        self.deliveries = deliveries
        self.retries = retries
        self.tracing = tracing
        self.monotonic = monotonic
        self.begun_s = monotonic()
        self.wait_s: float | None = None
        self.seconds: dict[StepKind, float] = {"inference": 0.0, "store": 0.0, "hook": 0.0}
        self.tries = 0
        self.status_code: int | None = None
        self.request_bytes: int | None = None
        self.response_bytes: int | None = None
        self.outcome = REQUEUED
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<TaskRecord {self.task_id!r} queue={self.queue!r} outcome={self.outcome}>"

    @property
    def run_s(self) -> float:
        """Return the seconds since the slot began with the task."""
        return self.monotonic() - self.begun_s

    @property
    def total_s(self) -> float | None:
        """Return the seconds since the task's arrival, None where its producer wrote none."""
        return None if self.wait_s is None else self.wait_s + self.run_s


#: The task of the calling greenlet or thread: nothing that is started from a task has it.
CURRENT: ContextVar[TaskRecord | None] = ContextVar("forwarder_task", default=None)


class Step:
    """A timed part of a task, and its span where the task is traced; outside of a task it does nothing."""

    __slots__ = ("_begun_s", "_kind", "_record", "_resource", "_span")

    def __init__(self, record: TaskRecord | None, kind: StepKind, resource: str) -> None:
        self._record = record
        self._kind = kind
        self._resource = resource
        self._span: Span | None = None

    def __enter__(self) -> Self:
        record = self._record
        if record is not None:
            if record.tracing is not None:
                self._span = record.tracing.begin_step(self._kind, self._resource)
            self._begun_s = record.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self._record
        if record is not None:
            record.seconds[self._kind] += record.monotonic() - self._begun_s
        if self._span is not None:
            self._span.end(error)

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the trace context to pass on: the step's own over that of the message."""
        return headers if self._span is None else {**headers, **self._span.headers()}

    def tag(self, name: str, value: str | float) -> None:
        """Add to the span, if there is one."""
        if self._span is not None:
            self._span.tag(name, value)

    def asked(self, request_bytes: int) -> None:
        """Note one more call of the inference server, with a request of this size."""
        if self._record is not None:
            self._record.tries += 1
            self._record.request_bytes = request_bytes
        self.tag("http.request.content_length", request_bytes)

    def answered(self, status: int, response_bytes: int) -> None:
        """Note the inference server's answer."""
        if self._record is not None:
            self._record.status_code = status
            self._record.response_bytes = response_bytes
        self.tag("http.status_code", str(status))
        self.tag("http.response.content_length", response_bytes)


def step(kind: StepKind, resource: str) -> Step:
    """Return what times a part of the running task, as a context manager; nests in no other of its kind.

    ``resource`` is one of a few words: it names the span.
    """
    return Step(CURRENT.get(), kind, resource)
