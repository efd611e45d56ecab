"""Sending the demo's tasks and reading what came of them, all with stock Celery and boto3."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from celery.result import AsyncResult

from forwarder.demo.account import Outcome, SentTask
from forwarder.demo.ways import Way
from forwarder.testing.aws_resources import delivered_records

STALL_S = 60.0  # without a single new result for so long, what is left counts as missing
DELIVERY_S = 10.0  # for records that Firehose holds when the worker has stopped
POLL_S = 0.02


def send(way: Way, numbers: Sequence[int]) -> SentTask:
    """Send one task and return what was sent."""
    task = SentTask(id=str(uuid.uuid4()), numbers=numbers, sent_at=datetime.now(UTC))
    way.producer.send(task.payload, task_id=task.id)
    return task


def results(way: Way, tasks: Sequence[SentTask]) -> Iterator[tuple[str, Outcome]]:
    """Yield task id and outcome in the order of sending, leaving out tasks without a result.

    Waits for each task until none has come for ``STALL_S``; from then on every
    further task gets one look, and waiting begins again if it is there.
    """
    deadline_s = time.monotonic() + STALL_S
    for task in tasks:
        result = way.producer.result(task.id)
        while not result.ready() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        if result.ready():
            deadline_s = time.monotonic() + STALL_S
            yield task.id, _outcome(result)


def records(way: Way, *, count: int) -> list[dict[str, Any]]:
    """Return the delivered records; waits up to ``DELIVERY_S`` while there are fewer than ``count``."""
    deadline_s = time.monotonic() + DELIVERY_S
    while True:
        delivered = list(delivered_records(way.cloud_env, way.records_bucket))
        if len(delivered) >= count or time.monotonic() > deadline_s:
            return delivered
        time.sleep(0.2)


def _outcome(result: AsyncResult[Any]) -> Outcome:
    done_at = result.date_done or datetime.now(UTC)
    if done_at.tzinfo is None:  # Celery gives UTC, aware or not
        done_at = done_at.replace(tzinfo=UTC)
    if result.successful():
        return Outcome(value=result.result, done_at=done_at)
    error = result.result
    return Outcome(value=None, done_at=done_at, error_code=getattr(error, "code", type(error).__name__))
