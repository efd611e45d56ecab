"""Greenlets that stay: a new one for each task costs more than all the rest of its way through the pool.

Imported by the gevent pool alone, once it starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.lock import Semaphore


class Job:
    """One function; its slot is known once it has begun. Celery keeps it by a weak reference.

    ``number`` is never used again: who kills a job late kills no other.
    """

    __slots__ = ("__weakref__", "killed", "number", "run", "slot")

    def __init__(self, number: int, run: Callable[[Job], None]) -> None:
        self.number = number
        self.run = run
        self.slot: _Slot | None = None
        self.killed = False

    def terminate(self, signal: int) -> None:
        """Do nothing: Celery calls this beside the pool's ``terminate_job``, which has done it."""


class Slots:
    """Jobs, each in a greenlet that takes the next one when it is over.

    At most ``size`` of them run: each does so inside of ``running``. Who takes messages counts those that
    are not settled and takes no more, but tasks whose ETA is one moment were taken long before it.
    As many again may be waiting to run, or for their ack's round trip, for which the next need not wait.
    None that runs waits for one of these, so all have their turn.

    Celery's ``grow``, ``shrink`` and ``on_stop`` know it as a ``gevent.pool.Pool``:
    ``size``, ``_semaphore`` and ``join`` are theirs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = Semaphore(size)
        self._semaphore = Semaphore(2 * size)
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._waiting: list[_Slot] = []
        self._empty = Event()
        self._empty.set()

    def __len__(self) -> int:
        """Return the number of jobs that run or are about to."""
        return len(self._jobs)

    def start(self, run: Callable[[Job], None]) -> Job:
        """Start a job, which is called with itself; blocks while twice ``size`` are not over."""
        self._semaphore.acquire()
        job = Job(next(self._numbers), run)
        self._jobs[job.number] = job
        self._empty.clear()
        if self._waiting:
            gevent.get_hub().loop.run_callback(self._waiting.pop().switch, job)
        else:
            _Slot(self, job).start()
        return job

    def kill(self, number: int) -> None:
        """Raise GreenletExit in a job where it waits; one that has not begun never does. Doesn't block."""
        job = self._jobs.get(number)
        if job is not None and not job.killed:
            job.killed = True  # its slot ends with it: what is raised late must not hit the next job
            if job.slot is not None:
                gevent.kill(job.slot)

    def join(self) -> None:
        """Block until no job is left."""
        self._empty.wait()

    def _end(self, job: Job) -> None:
        del self._jobs[job.number]
        self._semaphore.release()
        if not self._jobs:
            self._empty.set()

    def _wait(self, slot: _Slot) -> Job:
        self._waiting.append(slot)
        job: Job = gevent.get_hub().switch()
        return job


class _Slot(gevent.Greenlet):  # type: ignore[misc]  # gevent has no types
    """Runs jobs, one after the other, until one is killed or raises."""

    def __init__(self, slots: Slots, job: Job) -> None:
        super().__init__()
        self._slots = slots
        self._first = job

    def _run(self) -> None:
        job = self._first
        del self._first
        while True:
            try:
                if not job.killed:
                    job.slot = self
                    job.run(job)
            finally:
                self._slots._end(job)
            if job.killed:
                return
            del job  # it holds the task's body, and a slot may wait for long
            job = self._slots._wait(self)
