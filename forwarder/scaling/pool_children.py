"""The children of Celery's prefork pool: whose size is known, who is idle, and how one is ended."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any


class PoolChildren:
    """What the autoscaler must know of Celery's AsynPool, which has no public way to tell.

    Its private names stand here, and tests/unit/scaling/test_prefork_private_names.py pins them.
    """

    def __init__(self, pool: Any) -> None:
        self._task_pool = pool
        self._slots: dict[int, int] = {}  # slot to pid
        self._shown: set[int] = set()  # slots in which a task has ended

    @property
    def _pool(self) -> Any:
        return self._task_pool._pool

    def pids(self) -> list[int]:
        """Return the children's pids."""
        return [child.pid for child in self._pool._pool]

    def jobs(self) -> int:
        """Return how many tasks the pool has, those that wait for a child included."""
        return len(self._pool._cache)

    def look(self) -> list[int]:
        """Note in which slots a task has ended; return the children of those that are new among them.

        A slot whose child was replaced since the last look counts, too.
        """
        counters = self._pool._on_ready_counters
        slots = {child.index: child.pid for child in self._pool._pool}
        ended = {
            slot for slot, pid in slots.items()
            if self._slots.get(slot, pid) != pid
            # Past its lock, which a child that was killed may have kept.
            or (pid in counters and counters[pid].get_obj().value)
        }  # fmt: skip
        new = [slots[slot] for slot in ended - self._shown]
        self._slots = slots
        self._shown = (self._shown | ended) & slots.keys()
        return new

    def shown(self) -> int:
        """Return how many children's size is known, as of the last look."""
        return len(self._shown)

    def idle(self) -> Iterator[Any]:
        """Yield the children that have no task and get none now.

        Celery's own ``shrink`` goes by the tasks that children have confirmed: one that was
        written to a child and not yet confirmed dies with it.
        """
        pool = self._pool
        for child in pool._pool:
            if child.inqW_fd not in pool._busy_workers and child.inqW_fd not in pool._active_writes:
                yield child

    def end(self, child: Any) -> None:
        """End one idle child for good, as ``shrink`` does."""
        pool = self._pool
        pool._processes -= 1
        if pool._putlock is not None:
            pool._putlock.shrink()
        child.terminate_controlled()
        pool.on_shrink(1)

    def forget_unborn(self, error: BaseException, *, at_least: int) -> None:
        """Take the child out whose fork failed with ``error``, and the places made for it and those after it.

        The pool takes it for one that has ended, of which it then finds nothing. It keeps ``at_least`` so
        many places, those of children that have really ended, too.
        """
        pool = self._pool
        for child in [child for child in pool._pool if child.pid is None]:
            pool._pool.remove(child)
            pool._queues[pool._find_worker_queues(child)] = None
        while pool._processes > max(at_least, len(pool._pool)):
            pool._processes -= 1
            if pool._putlock is not None:
                pool._putlock.shrink()
        _close_pipe(error.__cause__ or error)


def _close_pipe(error: BaseException) -> None:
    """Close the pipe that billiard makes for a child and leaves open where its fork fails."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_launch":
            ends = dict(frame.f_locals)
            for name in {"parent_r", "child_w"} & ends.keys():  # none where there was no pipe
                os.close(ends[name])
