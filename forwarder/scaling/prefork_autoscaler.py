"""The autoscaler of the prefork pool: Celery's seam, memory's rule."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from celery.worker.autoscale import Autoscaler
from kombu.asynchronous.semaphore import DummyLock

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.decisions import Decision, Rule, View, decide
from forwarder.scaling.pool_children import PoolChildren
from forwarder.scaling.process_memory import Memory, Sample

log = logging.getLogger(__name__)

#: Seconds between decisions.
PERIOD_S = 1.0

#: Seconds without a step up after a fork that failed.
FORK_AGAIN_S = 60.0

#: Reasons of decisions that are neither demand's nor the operator's bounds.
HELD_BACK = {"cap", "no_room", "memory_above_low", "memory_above_high", "fork_failed"}

#: Seconds for which the largest child that was seen counts as what one needs.
PEAK_S = 600.0


class Counts(Protocol):
    """Where decisions are counted."""

    def count(self, name: str, value: int = 1, /, **labels: str) -> None:
        """Add ``value`` to the counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What the autoscaler is made of besides the pool; Celery makes it, so the app's configuration has this.

    ``child_bytes`` is what one child needs as the operator gives it, 0 where it is only
    measured; ``step`` how many children are forked at a time; ``idle_s`` for how long two
    or more have been idle before one is let go.
    """

    limit: Limit
    low: float
    high: float
    step: int
    idle_s: float
    child_bytes: int
    counts: Counts
    memory: Callable[..., Memory] = Memory
    now: Callable[[], float] = time.monotonic


class MemoryAutoscaler(Autoscaler):
    """Celery's autoscaler, which grows by what tasks wait, within what memory allows.

    Celery calls it once a second and at each task that comes, always in the event loop's
    thread. Once a second it decides and forks there, as the pool itself does for a child
    that has ended; what is raised while a message is handled would be its task's failure. The
    consumer takes no more messages than the pool is meant to have children, so one that
    is to go gets no task any more, and goes when it has none.
    """

    def __init__(  # noqa: PLR0917 - Celery calls it so
        self,
        pool: Any,
        max_concurrency: int,
        min_concurrency: int = 0,
        worker: Any = None,
        keepalive: float = PERIOD_S,
        mutex: Any = None,
    ) -> None:
        if not isinstance(mutex, DummyLock):
            raise RuntimeError("the autoscaler forks in the event loop's thread, and this broker has no loop")
        super().__init__(pool, max_concurrency, min_concurrency, worker, PERIOD_S, mutex)
        # The consumer, which is made next, asks the broker for this many messages; Celery asks for
        # as many as the pool could ever run.
        worker.max_concurrency = min_concurrency
        scaling: Scaling = worker.app.conf.forwarder_scaling
        self._scaling = scaling
        self._rule = Rule(
            maximum=max_concurrency, minimum=min_concurrency, low=scaling.low, high=scaling.high
        )  # fmt: skip
        self._children = PoolChildren(pool)
        self._memory = scaling.memory(children=self._children.pids, now=scaling.now)
        self._target = self._slots = min_concurrency
        self._decided = Decision("hold", min_concurrency, "on_its_way")
        self._busy_peak = 0  # since the last decision
        self._busy = deque[int](maxlen=max(1, round(scaling.idle_s / PERIOD_S)))
        self._largest = deque[int](maxlen=round(PEAK_S / PERIOD_S))
        self._startup_bytes = 0
        self._grow_from_s = scaling.now()
        self._said = set[tuple[str, str]]()  # since the pool's size was last to change
        self._failed: type[Exception] | None = None
        log.info(
            "autoscale_start max=%d min=%d limit_mb=%d limit_source=%s low=%g high=%g",
            max_concurrency, min_concurrency, scaling.limit.bytes // MIB, scaling.limit.source,
            scaling.low, scaling.high,
        )  # fmt: skip

    pool: Any
    worker: Any

    @property
    def held_back(self) -> bool:
        """Return whether memory, or a fork that failed, keeps it below MAX."""
        return self._decided.reason in HELD_BACK

    def maybe_scale(self, req: Any = None) -> None:
        """Note the task that comes, or without one decide and act. A step up forks, which blocks.

        Never raises: Celery takes what it doesn't know for the end of the worker.
        """
        try:
            self._busy_peak = max(self._busy_peak, self._children.jobs() + (req is not None))
            if req is None:
                self._decide()
                self._failed = None
        except Exception as error:
            # What fails now fails every second.
            if type(error) is not self._failed:
                log.warning("autoscale_failed error=%s", type(error).__name__, exc_info=True)
            self._failed = type(error)

    def _decide(self) -> None:
        # A page that a child writes was resident before as its parent's: only an exact reading tells.
        sample = self._memory.sample(exactly=self._children.look())
        view = self._view(sample)
        decision = decide(self._rule, view)
        self._busy_peak = self._children.jobs()
        if decision.action != "shrink" and self._target != self.processes:
            # One step is done before the next begins.
            decision = Decision("hold", self._target, "on_its_way")
        elif decision.action == "grow" and self._scaling.now() < self._grow_from_s:
            decision = Decision("hold", self._target, "fork_failed")
        self._tell(decision, view)
        self._decided = decision
        self._target = decision.target
        self._grow_on()
        self._ask_for_as_many()
        self._let_go(sample)

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:  # noqa: A002
        """Take new bounds, as the remote command ``autoscale`` gives them; the next decisions follow them."""
        maximum = self._rule.maximum if max is None else max
        minimum = self._rule.minimum if min is None else min
        if not 1 <= minimum <= maximum:
            raise ValueError("the pool's smallest size is from 1 to its largest")
        self._rule = replace(self._rule, maximum=maximum, minimum=minimum)
        self.max_concurrency, self.min_concurrency = maximum, minimum
        return maximum, minimum

    def _view(self, sample: Sample) -> View:
        sizes = [memory.unique_bytes for pid, memory in sample.by_pid.items() if pid in self._children.pids()]
        self._startup_bytes = self._startup_bytes or min(sizes, default=0)
        self._largest.append(max(sizes, default=0))
        self._busy.append(self._busy_peak)
        used = self._scaling.limit.used_bytes()
        return View(
            size=self.processes,
            shown=self._children.shown(),
            child_bytes=max(self._scaling.child_bytes, *self._largest),
            child_now_bytes=max(self._scaling.child_bytes, self._largest[-1]),
            used_bytes=sample.proportional_bytes if used is None else used,
            limit_bytes=self._scaling.limit.bytes,
            full=self._busy_peak >= self.processes,
            calm=len(self._busy) == self._busy.maxlen and max(self._busy) <= self.processes - 2,
        )

    def _tell(self, decision: Decision, view: View) -> None:
        """Count each decision; log those that change the size, and the first of a kind since then."""
        self._scaling.counts.count(
            "forwarder_autoscale_decisions_total", action=decision.action, reason=decision.reason
        )
        said = decision.action, decision.reason
        if decision.target != self._target:
            self._said.clear()
        elif said in self._said:
            return
        self._said.add(said)
        log.info(
            "autoscale action=%s reason=%s size=%d target=%d shown=%d used_mb=%d used_percent=%.1f"
            " child_startup_mb=%d child_now_mb=%d child_peak_mb=%d",
            decision.action, decision.reason, view.size, decision.target, view.shown,
            view.used_bytes // MIB, 100 * view.used_bytes / view.limit_bytes,
            self._startup_bytes // MIB, self._largest[-1] // MIB, view.child_bytes // MIB,
        )  # fmt: skip

    def _grow_on(self) -> None:
        """Fork what is missing, a few at a time: the loop waits for it."""
        size = self.processes
        missing = min(self._target - size, self._scaling.step)
        if missing <= 0:
            return
        try:
            self.pool.grow(missing)
            self.pool.maintain_pool()
        except (OSError, MemoryError) as error:  # the latter is what the pool makes of ENOMEM
            self._children.forget_unborn(error, at_least=size)
            self._target = self.processes
            self._grow_from_s = self._scaling.now() + FORK_AGAIN_S
            log.warning("autoscale_fork_failed size=%d error=%r", self.processes, error.__cause__ or error)
        self._busy.clear()  # the new ones have been idle for no time yet

    def _ask_for_as_many(self) -> None:
        """Have the consumer hold as many messages as there are children, less those that are to go."""
        consumer, slots = self.worker.consumer, min(self._target, self.processes)
        change = slots - self._slots
        if not change or getattr(consumer, "qos", None) is None:  # not connected: it starts with the next
            return
        self._slots = slots
        # For its next connection, and for this one.
        consumer.initial_prefetch_count = slots
        consumer._update_qos_eventually(change)

    def _let_go(self, sample: Sample) -> None:
        """End one idle child, the largest, where there is one too many."""
        if self._target >= self.processes:
            return
        idle = sorted(self._children.idle(), key=lambda child: _unique(sample, child.pid), reverse=True)
        if idle:
            self._children.end(idle[0])


def _unique(sample: Sample, pid: int) -> int:
    memory = sample.by_pid.get(pid)
    return memory.unique_bytes if memory else 0
