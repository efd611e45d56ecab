"""Autoscaling under gevent: slots open and close by what waits in the queues."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker.autoscale import Autoscaler

from forwarder.scaling.admission import Admission
from forwarder.scaling.green_decisions import Demand

log = logging.getLogger(__name__)

ROUND_S = 1.0


class GreenAutoscaler(Autoscaler):
    """Celery's autoscaler for ``--autoscale MAX,MIN`` on the gevent pool.

    Stock, it opens a slot for each task that was received: it can't see what
    still waits, and holds as many messages as MAX. Here the pool has MAX slots
    from the start, which cost nothing until they are used, and what changes is how
    many of them are filled: none is ever taken from a running task. Celery's
    remote commands ``autoscale`` and ``stats`` work as they do with its own.
    """

    #: Overridden by tests only; Celery makes the autoscaler, so it can't be passed in.
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(
        self, pool: Any, max_concurrency: int, min_concurrency: int = 1, worker: Any = None, **options: Any
    ) -> None:
        super().__init__(pool, max_concurrency, min_concurrency, worker=worker, **options)
        self._admission: Admission = worker.app.conf.forwarder_admission
        self._book: Any = worker.app.conf.forwarder_book
        self._demand = Demand(least=min_concurrency, most=max_concurrency)
        self._unreadable = False
        pool.limit = max_concurrency  # Celery makes the pool with MIN slots, and starts it after this

    def body(self) -> None:
        """Look once, then wait; Celery calls this again and again in a thread, here a greenlet."""
        with self.mutex:
            self.maybe_scale()
        self.sleep(ROUND_S)

    def maybe_scale(self, req: Any = None) -> None:
        """Open or close slots. Blocks for one question to the broker; never raises."""
        before, running = self._admission.slots, len(self._book)
        slots = self._demand.next(slots=before, running=running, waiting=self._waiting())
        if slots != before:
            self._admission.slots = slots
            log.info("slots_changed slots=%d before=%d running=%d", slots, before, running)

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:  # noqa: A002 - Celery's names
        """Change the bounds, as remote control asks; MAX can't pass what the worker was started with."""
        with self.mutex:
            most = self.max_concurrency if max is None else _within(max, self._admission.slots_max)
            least = self.min_concurrency if min is None else min
            self.max_concurrency, self.min_concurrency = most, _within(least, most)
            self._demand = Demand(least=self.min_concurrency, most=most)
            return self.max_concurrency, self.min_concurrency

    @property
    def processes(self) -> int:
        """Return the number of open slots."""
        return self._admission.open_slots

    @property
    def held_back(self) -> bool:
        """Return whether memory keeps it below MAX."""
        return self._admission.cap < self.max_concurrency

    @property
    def qty(self) -> int:
        """Return the number of tasks in flight."""
        return len(self._book)

    def _waiting(self) -> int | None:
        try:
            waiting: int | None = self._book.leases.waiting()
        except Exception as error:  # noqa: BLE001 - whatever it was, the slots stay as they are
            if not self._unreadable:
                log.warning("backlog_unreadable error=%s", type(error).__name__)
            self._unreadable = True
            return None
        self._unreadable = False
        return waiting


def _within(number: int, most: int) -> int:
    return max(1, min(number, most))
