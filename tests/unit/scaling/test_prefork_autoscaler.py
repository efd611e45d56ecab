"""The prefork autoscaler on a pool of our own, and what of Celery's pool it relies on."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from billiard import pool as billiard_pool
from billiard import popen_fork
from celery.concurrency import asynpool, prefork
from celery.worker import autoscale, components
from celery.worker.consumer import Consumer
from kombu.asynchronous.semaphore import DummyLock, LaxBoundedSemaphore

from forwarder.scaling.container import Limit
from forwarder.scaling.pool_children import PoolChildren
from forwarder.scaling.prefork_autoscaler import FORK_AGAIN_S, PERIOD_S, MemoryAutoscaler, Scaling
from forwarder.scaling.process_memory import ProcessMemory, Sample
from forwarder.telemetry.metrics import ProcessMetrics

MB = 1024 * 1024
LIMIT_MB = 1000
DECISIONS = "forwarder_autoscale_decisions_total"


class Child:
    """One child of the pool; ``mb`` is its unique memory, ``ended`` how many tasks it has done."""

    def __init__(self, index: int, pid: int | None) -> None:
        self.index, self.pid, self.inqW_fd = index, pid, 1000 + (pid or 0)
        self.ended, self.mb, self.told_to_end = 0, 10, False

    def terminate_controlled(self) -> None:
        self.told_to_end = True

    def get_obj(self) -> Any:
        return SimpleNamespace(value=self.ended)


class AsynPool:
    """As much of Celery's as the autoscaler knows."""

    def __init__(self, size: int) -> None:
        self._processes = size
        self._putlock = LaxBoundedSemaphore(size)
        self._busy_workers: set[int] = set()
        self._active_writes: set[int] = set()
        self._cache: dict[int, object] = {}
        self._pool: list[Child] = []
        self._on_ready_counters: dict[int, Child] = {}
        self._pids = 0
        self._queues: dict[int, Child | None] = dict.fromkeys(range(size))
        self.forks_max = 1000
        self.fork_error: Exception = BlockingIOError(11, "Resource temporarily unavailable")
        self.maintain_pool()

    def grow(self, number: int) -> None:
        self._processes += number
        self._putlock.grow(number)
        self._queues |= dict.fromkeys(range(len(self._queues), self._processes))

    def maintain_pool(self) -> None:
        assert None not in self.pids(), "the pool knows nothing of such a child"
        for child in [child for child in self._pool if child.told_to_end]:
            self._pool.remove(child)
            self._queues[self._find_worker_queues(child)] = None
        while len(self._pool) < self._processes:
            used = {child.index for child in self._pool}
            child = Child(min(set(range(self._processes)) - used), None)
            self._pool.append(child)
            self._queues[next(queue for queue, owner in self._queues.items() if owner is None)] = child
            if self._pids >= self.forks_max:
                raise self.fork_error
            self._pids += 1
            child.pid, child.inqW_fd = self._pids, 1000 + self._pids
            self._on_ready_counters[child.pid] = child

    def pids(self) -> list[int | None]:
        return [child.pid for child in self._pool]

    def _find_worker_queues(self, child: Child) -> int:
        return next(queue for queue, owner in self._queues.items() if owner is child)

    def on_shrink(self, number: int) -> None:
        """As Celery's, do nothing."""


class TaskPool:
    """Celery's around it."""

    def __init__(self, inner: AsynPool) -> None:
        self._pool, self.grow, self.maintain_pool = inner, inner.grow, inner.maintain_pool

    @property
    def num_processes(self) -> int:
        return self._pool._processes


class QoS:
    """The consumer's prefetch count."""

    value = 0


class Scene:
    """A pool of MAX 100 and MIN 2 in 1,000 MB under one autoscaler, and a clock."""

    def __init__(self, **scaling: Any) -> None:
        self.now_s = 0.0
        self.inner = AsynPool(2)
        self.pool = TaskPool(self.inner)
        self.counts = ProcessMetrics()
        made: dict[str, Any] = {"step": 8, "idle_s": 5.0, "child_bytes": 0, "low": 0.5, "high": 0.7} | scaling
        scene = Scaling(
            limit=Limit(LIMIT_MB * MB, "setting"), counts=self.counts, now=lambda: self.now_s,
            **made, memory=self.made,
        )  # fmt: skip
        self.worker = SimpleNamespace(
            app=SimpleNamespace(conf=SimpleNamespace(forwarder_scaling=scene)), max_concurrency=100
        )
        self.autoscaler = MemoryAutoscaler(self.pool, 100, 2, worker=self.worker, mutex=DummyLock())
        self.prefetch = QoS()
        self.prefetch.value = self.worker.max_concurrency
        self.worker.consumer = SimpleNamespace(
            qos=self.prefetch, _update_qos_eventually=self.change, initial_prefetch_count=0
        )

    def made(self, **_: Any) -> Any:
        return SimpleNamespace(sample=self.sample)

    def change(self, number: int) -> None:
        self.prefetch.value += number

    def sample(self, *, exactly: Any = ()) -> Sample:
        by_pid = {
            child.pid: ProcessMemory(0, child.mb * MB, child.mb * MB)
            for child in self.inner._pool
            if child.pid is not None
        }
        total = sum(memory.unique_bytes for memory in by_pid.values())
        return Sample(total, total, total, by_pid)

    def work(self, *, mb: int) -> None:
        """Let each child have done a task with which it has grown, and have the next."""
        for child in self.inner._pool:
            child.ended, child.mb = child.ended + 1, mb
        self.busy(len(self.inner._pool))

    def busy(self, number: int) -> None:
        """Let the first so many children have a task."""
        self.inner._cache = dict.fromkeys(range(number), object())
        self.inner._busy_workers = {child.inqW_fd for child in self.inner._pool[:number]}

    def tick(self, times: int = 1) -> int:
        """Let so many periods pass; return the size of the pool."""
        for _ in range(times):
            self.now_s += PERIOD_S
            self.autoscaler.maybe_scale()
            self.inner.maintain_pool()  # the pool's own timer
        return self.inner._processes

    def count(self, action: str, reason: str) -> int:
        return self.counts.value(DECISIONS, action=action, reason=reason)


def test_the_consumer_begins_with_as_many_messages_as_there_are_children() -> None:
    assert Scene().worker.max_concurrency == 2


def test_the_pool_grows_as_its_children_show_their_size_and_stops_at_the_cap() -> None:
    scene = Scene()
    sizes = []
    for _ in range(12):
        scene.work(mb=49)
        sizes.append(scene.tick(2))
    assert sizes[:3] == [4, 8, 13]
    assert set(sizes[3:]) == {13}
    assert scene.count("block", "cap") > 0


def test_children_that_have_not_worked_yet_hold_the_pool() -> None:
    scene = Scene()
    scene.busy(2)
    assert scene.tick(5) == 2
    assert scene.count("hold", "sizes_unknown") == 5


def test_a_large_step_is_forked_a_few_at_a_time() -> None:
    scene = Scene(step=3)
    sizes = [2]
    for _ in range(12):
        scene.work(mb=1)
        sizes.append(scene.tick())
    assert max(after - before for before, after in itertools.pairwise(sizes)) == 3
    assert sizes[-1] > 20


def test_a_step_is_finished_before_the_next_is_thought_of() -> None:
    scene = Scene(step=3)
    for size in (4, 7, 8):
        if size < 8:
            scene.work(mb=10)
        assert scene.tick() == size
    assert scene.count("hold", "on_its_way") == 1


def test_the_consumer_holds_as_many_messages_as_there_are_children() -> None:
    scene = Scene()
    for _ in range(12):
        scene.work(mb=49)
        assert scene.tick() == scene.prefetch.value == len(scene.inner._pool)
    assert scene.worker.consumer.initial_prefetch_count == scene.prefetch.value


def test_a_consumer_that_is_not_connected_is_told_later() -> None:
    scene = Scene()
    scene.worker.consumer.qos = None
    scene.work(mb=49)
    scene.tick()
    assert scene.prefetch.value == 2
    scene.worker.consumer.qos = scene.prefetch
    scene.tick()
    assert scene.prefetch.value == 4


def full(scene: Scene) -> Scene:
    for _ in range(12):
        scene.work(mb=49)
        scene.tick(2)
    return scene


def test_above_the_high_mark_no_child_with_a_task_is_ended_and_the_first_that_is_free_goes() -> None:
    scene = full(Scene())
    before = scene.inner._processes
    scene.work(mb=55)
    assert scene.tick(3) == before, "all have a task"
    assert scene.prefetch.value == before - 1, "and one gets no other"
    scene.inner._busy_workers.pop()
    assert scene.tick() == before - 1
    assert scene.count("shrink", "memory_above_high") > 0


def test_of_the_free_children_the_largest_goes_and_none_that_is_being_given_a_task() -> None:
    scene = full(Scene())
    scene.work(mb=55)
    small, large, given = scene.inner._pool[:3]
    scene.inner._busy_workers -= {small.inqW_fd, large.inqW_fd, given.inqW_fd}
    scene.inner._active_writes = {given.inqW_fd}
    small.mb, given.mb = 40, 90
    scene.tick()
    assert [child for child in (small, large, given) if child.told_to_end] == [large]


def test_idle_children_go_one_at_a_time_after_a_while_down_to_one_more_than_work() -> None:
    scene = full(Scene())
    scene.busy(4)
    assert scene.tick(4) == 13, "not at once"
    assert scene.tick(40) == 5
    scene.busy(0)
    assert scene.tick(40) == 2


def test_a_slot_whose_child_is_replaced_after_each_task_has_shown_its_size() -> None:
    scene = Scene()
    children = PoolChildren(scene.pool)
    children.look()
    assert children.shown() == 0
    scene.inner._pool[0].told_to_end = True
    scene.inner.maintain_pool()
    (new,) = children.look()
    assert children.shown() == 1
    assert new == scene.inner._pool[-1].pid
    assert children.look() == []


def test_a_task_that_comes_is_noted_between_decisions() -> None:
    scene = Scene()
    scene.work(mb=10)
    scene.busy(1)
    scene.autoscaler.maybe_scale(object())  # the second of two children
    scene.busy(0)
    assert scene.tick() == 4


def test_a_task_that_comes_makes_no_decision_and_takes_no_blame() -> None:
    scene = Scene()
    scene.inner.forks_max = 2
    scene.work(mb=10)
    for _ in range(3):
        scene.now_s += PERIOD_S
        scene.autoscaler.maybe_scale(object())
    assert scene.counts.value(DECISIONS, action="grow", reason="demand") == 0
    assert scene.inner._processes == 2


@pytest.mark.parametrize("error", [BlockingIOError(11, "no more"), MemoryError()])
def test_a_fork_that_fails_leaves_the_pool_as_it_is_and_is_tried_again_after_a_minute(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.inner.fork_error, scene.inner.forks_max = error, 3
    scene.work(mb=1)
    assert scene.tick() == 3, "one of two"
    assert scene.inner._putlock.initial_value == len(scene.inner._pool) == scene.prefetch.value == 3
    assert sum(owner is not None for owner in scene.inner._queues.values()) == 3
    assert [record.args[0] for record in caplog.records if record.msg.startswith("autoscale_fork")] == [3]  # type: ignore[index]
    scene.inner.forks_max = 1000
    scene.work(mb=1)
    assert scene.tick(int(FORK_AGAIN_S) - 1) == 3
    assert scene.count("hold", "fork_failed") == FORK_AGAIN_S - 1
    assert scene.tick() == 6


def test_a_fork_that_fails_costs_no_place_whose_child_has_ended() -> None:
    scene = Scene()
    scene.inner.forks_max = 2
    scene.work(mb=1)
    scene.inner._pool[0].told_to_end = True
    scene.now_s += PERIOD_S
    scene.autoscaler.maybe_scale()
    assert (scene.inner._processes, len(scene.inner._pool)) == (2, 1)


def test_a_fork_that_fails_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    def refuse() -> int:
        raise BlockingIOError(11, "no more")

    ends: list[int] = []

    def pipe() -> tuple[int, int]:
        ends.extend(end.detach() for end in socket.socketpair())
        return ends[0], ends[1]

    monkeypatch.setattr(popen_fork, "os", SimpleNamespace(fork=refuse, pipe=pipe))
    with pytest.raises(OSError, match="no more") as caught:
        popen_fork.Popen(SimpleNamespace())  # type: ignore[arg-type]
    PoolChildren(scene.pool).forget_unborn(caught.value, at_least=2)
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


def test_a_decision_that_fails_is_told_once_and_the_next_is_made(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.autoscaler._memory = SimpleNamespace()  # type: ignore[assignment]
    scene.work(mb=1)
    assert scene.tick(5) == 2
    assert [record.args for record in caplog.records] == [("AttributeError",)]
    scene.autoscaler._memory = SimpleNamespace(sample=scene.sample)  # type: ignore[assignment]
    assert scene.tick() == 4


def test_what_alternates_at_one_size_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    caplog.set_level(logging.INFO)
    for _ in range(20):
        scene.busy(1)
        scene.tick(2)
        scene.busy(2)
        scene.tick(2)
    told = [record.args[:2] for record in caplog.records if record.msg.startswith("autoscale action")]  # type: ignore[index]
    assert told == [("hold", "idle_children"), ("hold", "sizes_unknown")]
    scene.work(mb=1)
    scene.tick()
    scene.busy(1)
    scene.tick(2)
    told = [record.args[:2] for record in caplog.records if record.msg.startswith("autoscale action")]  # type: ignore[index]
    assert told[2:] == [("grow", "demand"), ("hold", "idle_children")]


def test_given_sizes_count_until_a_child_is_larger() -> None:
    scene = Scene(child_bytes=200 * MB)
    for _ in range(4):
        scene.work(mb=20)
        scene.tick(2)
    assert scene.inner._processes == 2  # 700 / 200 - 1
    assert scene.count("block", "cap") > 0


def test_new_bounds_are_followed_one_at_a_time() -> None:
    scene = full(Scene())
    assert scene.autoscaler.update(10, 3) == (10, 3)
    scene.inner._busy_workers.clear()
    assert [scene.tick(), scene.tick(), scene.tick(), scene.tick()] == [12, 11, 10, 10]
    with pytest.raises(ValueError, match="smallest size"):
        scene.autoscaler.update(2, 5)


def test_without_an_event_loop_it_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="no loop"):
        MemoryAutoscaler(Scene().pool, 8, 2, worker=Scene().worker, mutex=None)


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
