"""Around Celery's tracer: the record of the task that runs, its span, and its last line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from forwarder.forwarding.record import CURRENT, REQUEUED, Span, TaskRecord, Tracing
from forwarder.forwarding.task_call import trace_headers

log = logging.getLogger(__name__)


class TaskScope:
    """Celery's tracer of a task, from the first to the last thing that a slot does for it.

    A task that ends without an outcome goes back to the queue. One that is killed where
    it waits is cut off: who killed it says what becomes of its message.
    """

    def __init__(
        self,
        tracer: Callable[..., Any],
        *,
        tracing: Tracing | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracer = tracer
        self._tracing = tracing
        self._monotonic = monotonic

    def __call__(self, uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        """Run the task as Celery does; raises what its tracer raises."""
        request = request or {}
        record = self._record(uuid, request)
        token = CURRENT.set(record)
        span = self._tracing.begin_task(record, trace_headers(request)) if self._tracing else None
        event = None
        try:
            return self._tracer(uuid, args, kwargs, request)
        except Exception as error:  # Celery's Reject: the outcome could not be stored
            record.outcome, record.error = REQUEUED, error
            raise
        except BaseException as error:
            event, record.error = "task_cut_off", error
            raise
        finally:
            _write_line(event or _event(record.outcome), record)
            if span is not None:
                _describe(span, record)
                span.end(record.error)
            record.error = None  # its traceback holds the body
            CURRENT.reset(token)

    def _record(self, uuid: str, request: Mapping[str, Any]) -> TaskRecord:
        deliveries, retries = request.get("forwarder_deliveries"), request.get("retries")
        return TaskRecord(
            task_id=str(uuid),
            queue=str(request.get("forwarder_queue")),
            deliveries=deliveries if isinstance(deliveries, int) else 1,
            retries=retries if isinstance(retries, int) else 0,
            tracing=self._tracing,
            monotonic=self._monotonic,
        )


def _event(outcome: str) -> str:
    if outcome == REQUEUED:
        return "task_requeued"
    return "task_already_done" if outcome.startswith("already_") else "task_done"


def _write_line(event: str, record: TaskRecord) -> None:
    seconds = record.seconds
    log.info(
        "%s task_id=%s queue=%s outcome=%s deliveries=%d retries=%d status_code=%s tries=%d wait_s=%s "
        "inference_s=%s store_s=%s hooks_s=%s run_s=%s total_s=%s request_bytes=%s response_bytes=%s",
        event, record.task_id, record.queue, record.outcome, record.deliveries, record.retries,
        record.status_code, record.tries, _ms(record.wait_s), _ms(seconds["inference"]),
        _ms(seconds["store"]), _ms(seconds["hook"]), _ms(record.run_s), _ms(record.total_s),
        record.request_bytes, record.response_bytes,
    )  # fmt: skip


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _describe(span: Span, record: TaskRecord) -> None:
    """Tell a span what the line tells; where the time went, its children tell."""
    for name, value in (
        ("forwarder.outcome", record.outcome),
        ("forwarder.tries", record.tries),
        ("forwarder.wait_s", record.wait_s),
        ("http.status_code", None if record.status_code is None else str(record.status_code)),
        ("http.request.content_length", record.request_bytes),
        ("http.response.content_length", record.response_bytes),
    ):
        if value is not None:
            span.tag(name, value)
