"""Spans of tasks for Datadog, where ``ddtrace-run`` started the worker; otherwise nothing of it is loaded."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from forwarder.forwarding.errors import ForwarderError
from forwarder.forwarding.record import Span, StepKind, TaskRecord

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: Beginning of every span's name.
PREFIX = "forwarder."

#: Kind of step to Datadog's type of span.
SPAN_TYPES: Mapping[StepKind, str] = {"inference": "http", "store": "db", "hook": "http"}

#: Answers of the inference server that are its own failure.
SERVER_ERROR = 500


def begin(*, predict_url: str, forks: bool) -> DatadogTracing | None:
    """Return what makes spans, or None where the process is not traced. Called once, before any fork.

    ``forks``: the tasks run in children of this process, which makes no spans of its own then.

    What ddtrace adds to Celery's workers is taken off: its span is no error when a task
    fails with a code, and ours tells more. So is what it adds to Redis's
    client: half of the CPU that tracing costs, for what the store's spans tell. Traces in
    which no task runs are not sent: they would be one for each poll of a broker.
    """
    if "ddtrace" not in sys.modules:
        return None
    from ddtrace.propagation.http import HTTPPropagator
    from ddtrace.trace import tracer

    if not tracer.enabled:
        return None
    _take_celerys_spans_off()
    _take_rediss_spans_off()
    if not (forks and _leave_exporting_to_children(tracer)):
        tracer.configure(trace_processors=[_only_tasks()])
    return DatadogTracing(tracer=tracer, propagator=HTTPPropagator, predict_url=predict_url)


def _take_celerys_spans_off() -> None:
    """Disconnect ddtrace's receivers of what a worker does; those of what it publishes stay.

    Private: its own switch, DD_TRACE_CELERY_ENABLED, is read before this process is ours.
    """
    import celery  # noqa: F401 - connects them
    from celery import signals
    from ddtrace.contrib.internal.celery.signals import (
        trace_failure,
        trace_postrun,
        trace_prerun,
        trace_retry,
    )

    signals.task_prerun.disconnect(trace_prerun)
    signals.task_postrun.disconnect(trace_postrun)
    signals.task_failure.disconnect(trace_failure)
    signals.task_retry.disconnect(trace_retry)


def _take_rediss_spans_off() -> None:
    """Undo what ``ddtrace-run`` did to Redis's client, which it does when that is imported. Private too."""
    import redis  # noqa: F401
    from ddtrace.contrib.internal.redis.patch import unpatch

    unpatch()  # type: ignore[no-untyped-call]


def _leave_exporting_to_children(tracer: Any) -> bool:
    """Close this process's exporter; a child makes its own for its first span. False where ddtrace can't.

    The exporter asks the agent for /info when it is made and after each fork, and a fork waits for the
    answer: for 3 s, at every child, where the agent takes connections and never answers. Private:
    ``tracer.shutdown`` can't be undone in a child, and ``tracer.configure`` makes one more exporter.
    ``shutdown_exporter`` is younger than ddtrace 4.0.
    """
    aggregator = tracer._span_aggregator
    if not hasattr(aggregator.writer, "shutdown_exporter"):
        return False
    aggregator.user_processors = [_only_tasks()]
    aggregator.writer.shutdown_exporter()
    return True


def _only_tasks() -> Any:
    from ddtrace.trace import TraceFilter

    class OnlyTasks(TraceFilter):
        """Drops the traces of what goes on beside the tasks."""

        def process_trace(self, trace: list[Any]) -> list[Any] | None:
            return trace if any(span.name.startswith(PREFIX) for span in trace) else None

    return OnlyTasks()


class NoSpan:
    """Stands in for a span that could not be made."""

    def tag(self, name: str, value: str | float) -> None:
        """Do nothing."""

    def headers(self) -> Mapping[str, str]:
        """Return nothing: what the message brought is passed on."""
        return {}

    def end(self, error: BaseException | None = None) -> None:
        """Do nothing."""


def _or(instead: Callable[[], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return ``instead()`` where ddtrace raises: a message's odd headers must not fail its task."""

    def around(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it was
                _say_once(method.__name__, type(error).__name__)
                substitute: R = instead()
                return substitute

        return guarded

    return around


@functools.cache
def _say_once(step: str, error: str) -> None:
    log.warning("tracing_failed step=%s error=%s", step, error)


def _nothing() -> None:
    pass


class DatadogTracing:
    """Makes the spans of tasks by ddtrace's tracer, which sends them in the background.

    ``predict_url`` names the inference server's spans; its path and address are told.
    """

    def __init__(self, *, tracer: Any, propagator: Any, predict_url: str) -> None:
        self._tracer = tracer
        self._propagator = propagator
        parts = urlsplit(predict_url)
        self._predict = f"POST {parts.path or '/'}"
        self._host = parts.hostname or ""

    def __repr__(self) -> str:
        return f"<DatadogTracing enabled={self._tracer.enabled}>"

    @_or(NoSpan)
    def begin_task(self, record: TaskRecord, headers: Mapping[str, str]) -> Span:
        """Begin a task's span in the trace that the message's headers name, or in one of its own."""
        parent = self._propagator.extract(dict(headers)) if headers else None
        if parent is not None and not parent.trace_id:
            parent = None
        span = self._tracer.start_span(
            PREFIX + "task", child_of=parent, resource=record.queue, span_type="worker", activate=True
        )
        span.set_tag("span.kind", "consumer")
        span.set_tag("forwarder.task_id", record.task_id)
        span.set_tag("forwarder.queue", record.queue)
        span.set_metric("forwarder.deliveries", record.deliveries)
        return DatadogSpan(span, self._propagator)

    @_or(NoSpan)
    def begin_step(self, kind: StepKind, resource: str) -> Span:
        """Begin a span within the task's."""
        span = self._tracer.trace(PREFIX + kind, resource=resource, span_type=SPAN_TYPES[kind])
        span.set_tag("span.kind", "client")
        if kind == "inference":
            span.resource = self._predict
            span.set_tag("out.host", self._host)
        return DatadogSpan(span, self._propagator, is_call=kind == "inference")

    def close(self, timeout_s: float) -> None:
        """Send what is left; blocks for so long at most. What ends after it is not sent."""
        self._tracer.shutdown(timeout_s)


class DatadogSpan:
    """One span of ddtrace's. Only numbers and our own words become tags.

    ``is_call``: an answer that is the server's own failure is one of this span, though none of the task.
    """

    def __init__(self, span: Any, propagator: Any, *, is_call: bool = False) -> None:
        self._span = span
        self._propagator = propagator
        self._is_call = is_call

    @_or(_nothing)
    def tag(self, name: str, value: str | float) -> None:
        """Add a tag, or of a number a metric."""
        if isinstance(value, str):
            self._span.set_tag(name, value)
        else:
            self._span.set_metric(name, value)
        if self._is_call and name == "http.status_code" and int(value) >= SERVER_ERROR:
            self._span.error = 1

    @_or(dict)
    def headers(self) -> Mapping[str, str]:
        """Return the trace context in every style that DD_TRACE_PROPAGATION_STYLE names."""
        headers: dict[str, str] = {}
        self._propagator.inject(self._span, headers)
        return headers

    @_or(_nothing)
    def end(self, error: BaseException | None = None) -> None:
        """End the span, as failed by ``error``: its class and code, as its text may quote."""
        if error is not None:
            self._span.error = 1
            self._span.set_tag("error.type", type(error).__name__)
            if isinstance(error, ForwarderError):
                self._span.set_tag("error.message", error.code)
        self._span.finish()
