"""Takes messages off SQS: one long poll at a time, for as many as there are free slots."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from forwarder.aws_errors import describe
from forwarder.backoff import Backoff
from forwarder.brokers.sqs.calls import BATCH_MAX
from forwarder.brokers.sqs.deletes import Uniform
from forwarder.brokers.sqs.leases import SqsLeases
from forwarder.brokers.sqs.messages import RawMessage

log = logging.getLogger(__name__)

#: Under load, how long the first free slot waits for others, so that one call serves several. With the
#: call itself a message still comes within 0.1 s.
GATHER_S = 0.08
#: The number of slots may change without a message being settled.
RECHECK_S = 1.0

BACKOFF = Backoff(base_s=1.0, max_s=30.0)


class Receiver(threading.Thread):
    """Polls from a thread of its own (a greenlet under gevent), so that nothing waits for a poll but it.

    ``slots`` returns how many messages the worker may hold and how many it
    holds. ``arrived`` is called with what came, in this thread. ``wanted`` says
    whether the worker still takes tasks; what comes after that is handed back.
    A failing SQS is tried again, with a growing pause, for as long as that is so;
    ``answered`` is told after each poll whether it was answered.
    """

    def __init__(
        self,
        *,
        leases: SqsLeases,
        slots: Callable[[], tuple[int, int]],
        arrived: Callable[[Sequence[RawMessage]], None],
        wanted: Callable[[], bool],
        answered: Callable[[bool], object] = lambda answered: None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        super().__init__(name="sqs-receiver", daemon=True)
        self._leases = leases
        self._slots = slots
        self._arrived = arrived
        self._worker_wants = wanted
        self._answered = answered
        self._clock = clock
        self._uniform = uniform
        self._stopped = threading.Event()
        self._loaded = False  # whether the last poll found anything

    def run(self) -> None:
        """Poll until ``stop``, or until the worker is to stop."""
        failed = 0
        while self._wanted():
            number = self._free_slots()
            try:
                messages = self._leases.fetch(number, self._wanted) if number else []
            except Exception as error:  # noqa: BLE001 - whatever it was, the worker must go on by itself
                failed += 1
                self._answered(False)
                log.warning("receive_failed failures=%d error=%s", failed, describe(error))
                self._loaded = False
                self._stopped.wait(BACKOFF.wait_s(failed, self._uniform))
                continue
            if number:
                self._answered(True)
            failed = 0
            self._loaded = bool(messages)
            if messages:
                self._arrived(messages)

    def stop(self) -> None:
        """Take no more. Does not wait for the poll that runs: what it brings is handed back."""
        self._stopped.set()
        self._leases.changed.set()

    def _wanted(self) -> bool:
        return not (self._stopped.is_set() or self._leases.closed) and self._worker_wants()

    def _free_slots(self) -> int:
        """Block until it is time to poll and return for how many; 0 when the worker is to stop."""
        first_free_s: float | None = None
        while self._wanted():
            self._leases.changed.clear()
            most, held = self._slots()
            free = min(most - held - self._leases.loose, BATCH_MAX)
            wait_s = RECHECK_S
            if free > 0:
                if first_free_s is None:
                    first_free_s = self._clock()
                wait_s = first_free_s + GATHER_S - self._clock()
                if not self._loaded or free >= min(most, BATCH_MAX) or wait_s <= 0:
                    return free
            self._leases.changed.wait(wait_s)
        return 0
