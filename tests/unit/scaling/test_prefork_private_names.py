"""What the prefork autoscaler relies on in Celery's and billiard's pools."""

from __future__ import annotations

import inspect
from typing import Any

from billiard import pool as billiard_pool
from billiard import popen_fork
from celery.concurrency import asynpool, prefork
from celery.worker import autoscale, components
from celery.worker.consumer import Consumer


def private(owner: Any, name: str) -> Any:
    return getattr(owner, name)


def source(thing: Any) -> str:
    return inspect.getsource(thing)


def test_what_is_private_of_celery_and_billiard_is_as_it_was() -> None:
    # The autoscaler is called in the loop's thread, and told so by the DummyLock.
    step = source(autoscale.WorkerComponent.create)
    assert "mutex=DummyLock() if w.use_eventloop else None" in step
    step = source(autoscale.WorkerComponent.register_with_event_loop)
    assert "w.autoscaler.keepalive, w.autoscaler.maybe_scale" in step
    assert "w.consumer.on_task_message.add(w.autoscaler.maybe_scale)" in step
    # The consumer's first prefetch count is made of max_concurrency, after the autoscaler.
    assert "max(w.max_concurrency, 1) * w.prefetch_multiplier" in source(components.Consumer.create)
    assert components.Consumer.last
    assert list(inspect.signature(private(Consumer, "_update_qos_eventually")).parameters) == [
        "self",
        "index",
    ]
    # A child that has a task is in _busy_workers from its writing to its result.
    events = source(private(asynpool.AsynPool, "_create_write_handlers"))
    assert "mark_worker_as_busy(ready_fd)" in events
    assert "active_writes.add" in events
    assert "self._mark_worker_as_available(inqW_fd)" in source(asynpool.AsynPool.on_job_ready)
    # Tasks that have ended, per child.
    assert "on_ready_counter.value += 1" in source(billiard_pool.ResultHandler)
    # What end() does is what shrink does.
    shrink = source(billiard_pool.Pool.shrink)
    for line in ("_processes -= 1", "_putlock.shrink()", "terminate_controlled()", "on_shrink(1)"):
        assert line in shrink
    # What forget_unborn() undoes is what a fork's failure leaves.
    made = source(private(billiard_pool.Pool, "_create_worker_process"))
    assert made.index("_pool.append(w)") < made.index("_process_register_queues") < made.index("w.start()")
    assert made.index("w.start()") < made.index("_poolctrl[w.pid]")
    assert "self._queues[queues] = proc" in source(private(asynpool.AsynPool, "_process_register_queues"))
    assert "owner == proc" in source(private(asynpool.AsynPool, "_find_worker_queues"))
    assert "raise MemoryError from exc" in source(billiard_pool.Pool.maintain_pool)
    assert "parent_r, child_w = os.pipe()" in source(private(popen_fork.Popen, "_launch"))
    assert "return self._pool._processes" in source(private(prefork.TaskPool, "num_processes").fget)
    assert "P.grow" in source(prefork.TaskPool.on_start)
