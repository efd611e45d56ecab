"""Stock Celery: ``celery -A benchmarks.rivals.celery_rival worker``; ``BENCH_TUNED=1`` tunes it.

Tuned is what its documentation offers for speed: a shared result backend, an unlimited
prefetch of what the pool can run, and nothing that talks to anybody but the queue.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from benchmarks.rivals import work

app = Celery("bench", broker=work.BROKER_URL, backend=work.RESULTS_URL)
app.conf.update(
    task_default_queue="bench",
    result_expires=work.RESULT_TTL_S,
    broker_connection_retry_on_startup=True,
)
if os.environ.get("BENCH_TUNED"):
    app.conf.update(
        result_backend_thread_safe=True,
        worker_prefetch_multiplier=4,
        worker_disable_rate_limits=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_send_sent_event=False,
        redis_backend_health_check_interval=None,
    )
client = work.Client()


@app.task(name="bench.forward")
def forward(body: dict[str, Any]) -> Any:
    """Do the work of the comparison."""
    return client.predict(body)


def enqueue(body: dict[str, Any]) -> str:
    """Send one task; return the key of its result."""
    return f"celery-task-meta-{forward.delay(body).id}"


if __name__ == "__main__":
    work.send(enqueue)
