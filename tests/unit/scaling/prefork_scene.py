"""A pool of our own under the prefork autoscaler, and a clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kombu.asynchronous.semaphore import DummyLock, LaxBoundedSemaphore

from forwarder.scaling.container import Limit
from forwarder.scaling.prefork_autoscaler import PERIOD_S, MemoryAutoscaler, Scaling
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


def full(scene: Scene) -> Scene:
    for _ in range(12):
        scene.work(mb=49)
        scene.tick(2)
    return scene
