"""The forwarder's sender: stock Celery, as its users have it."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.rivals import work

app = Celery("bench", broker=work.BROKER_URL, backend=work.RESULTS_URL)


def enqueue(body: dict[str, Any]) -> str:
    """Send one task; return the key of its result."""
    result = app.send_task("forwarder.forward", args=({"args": body},), queue="bench")
    return f"celery-task-meta-{result.id}"


if __name__ == "__main__":
    work.send(enqueue)
