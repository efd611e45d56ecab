"""Keeps the leases of what is in flight, and takes over what dead workers left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.leases import LeaseBook

log = logging.getLogger(__name__)

#: Upper bound between two rounds in seconds: a dead worker's tasks are seen that
#: soon after their leases ended, whatever the visibility timeout.
ROUND_S_MAX = 5.0


def round_s(visibility_timeout_s: float) -> float:
    """Return the seconds between two rounds: two of them may fail before a lease ends."""
    return min(ROUND_S_MAX, visibility_timeout_s / 3)


class LeaseKeeper(threading.Thread):
    """Renews, settles what is owed and takes over, round after round.

    A thread of its own, because Celery's timers stand still while its main loop
    reconnects or waits for the pool; under gevent's patch it is a greenlet.
    ``cancel`` ends the running copy of a task whose lease is lost: somebody else
    runs it by now.
    """

    def __init__(self, *, book: LeaseBook, interval_s: float, cancel: Callable[[Delivery], None]) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._book = book
        self._interval_s = interval_s
        self._cancel = cancel
        self._stopped = threading.Event()
        self._failing: tuple[str, str] | None = None
        #: Called as each round begins.
        self.turned: Callable[[], object] = lambda: None

    @property
    def failing(self) -> bool:
        """Return whether the last round could not do its work, as where the broker is away."""
        return self._failing is not None

    def run(self) -> None:
        """Keep leases until ``stop``."""
        while not self._stopped.wait(self._interval_s):
            with self._book.unforked:
                self.round()

    def stop(self) -> None:
        """Start no further round. Does not wait for one that runs."""
        self._stopped.set()

    def round(self) -> None:
        """Renew, cancel what is lost, settle what is owed, take over. Blocks; never raises."""
        self.turned()
        step = "lease_renewal"
        try:
            leases = self._book.leases
            for delivery in leases.renew(self._book.leased()):
                self._lose(delivery)
            self._book.settle_owed()
            step = "take_over"
            taken = leases.take_over()
        except Exception as error:  # noqa: BLE001 - the next round tries again
            self._note(step, type(error).__name__)
            return
        self._note(None)
        if taken:
            log.info("tasks_taken_over number=%d", taken)

    def _lose(self, delivery: Delivery) -> None:
        if not self._book.lose(delivery):
            return  # settled meanwhile
        log.warning("lease_lost task_id=%s queue=%s at=renewal", delivery.task_id, delivery.queue)
        try:
            self._cancel(delivery)
        except Exception as error:  # noqa: BLE001 - the others are to be cancelled all the same
            log.error("cancel_failed task_id=%s error=%s", delivery.task_id, type(error).__name__)
        self._book.wake()

    def _note(self, failing: str | None, error: str = "") -> None:
        """Log when a step begins to fail, or to fail otherwise, and when a whole round succeeds again."""
        if failing and (failing, error) != self._failing:
            log.warning("%s_failing error=%s", failing, error)
        elif self._failing and not failing:
            log.info("%s_recovered", self._failing[0])
        self._failing = (failing, error) if failing else None
