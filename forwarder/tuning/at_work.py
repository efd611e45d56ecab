"""``--auto``: the worker measures its own tasks, and gives its autoscaler the bound that they call for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from forwarder.forwarding.forwarder import BUSY_STATUSES
from forwarder.scaling.container import Limit
from forwarder.scaling.descriptors import allowed
from forwarder.settings.model import Settings
from forwarder.tuning.auto import Auto, Bound
from forwarder.tuning.bounds import bound
from forwarder.tuning.flow import Done, Flow
from forwarder.tuning.levels import quantile

log = logging.getLogger(__name__)

ROUND_S = 1.0
#: Ended tasks that are kept between two looks, at most: of more, the latest are enough.
DONE_MAX = 20_000

INFERENCES = "forwarder_inference_seconds"


class Taken(Protocol):
    """A message that the worker holds; see :class:`forwarder.brokers.deliveries.Delivery`."""

    @property
    def slot_s(self) -> float | None: ...
    @property
    def payload_bytes(self) -> int: ...


class Book(Protocol):
    """The lease book; it calls ``acked`` with each message that has its outcome."""

    acked: Callable[[Any], object]

    def held(self) -> Sequence[Taken]: ...


class Scaler(Protocol):
    """The autoscaler of either pool: ``update`` sets its bounds, ``processes`` are the slots of now."""

    @property
    def processes(self) -> int: ...
    @property
    def held_back(self) -> bool: ...

    def update(self, max: int | None = None, min: int | None = None) -> object: ...  # noqa: A002


class AutoTuner(threading.Thread):
    """Looks once a second, in a thread of its own, under gevent's patch a greenlet.

    ``bound`` returns the most slots that there may be while messages have so many bytes,
    ``refusals`` how often the inference server was busy, and how often it failed. No process
    is forked ``unforked``.
    """

    def __init__(
        self,
        *,
        auto: Auto,
        scaler: Scaler,
        book: Book,
        bound: Callable[[int], Bound],
        refusals: Callable[[], tuple[int, int]],
        unforked: AbstractContextManager[object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="auto", daemon=True)
        self._auto = auto
        self._scaler = scaler
        self._book = book
        self._bound = bound
        self._refusals = refusals
        self._unforked = unforked
        self._monotonic = monotonic
        self._flow = Flow()
        self._done: deque[Done] = deque(maxlen=DONE_MAX)
        self._stopped = threading.Event()
        self._failed: type[Exception] | None = None

    def run(self) -> None:
        """Begin with the least, and look until ``stop``."""
        with self._unforked:
            self.begin()
        while not self._stopped.wait(ROUND_S):
            with self._unforked:
                self.round()

    def stop(self) -> None:
        """Look no more; the slots stay as they are."""
        self._stopped.set()

    def begin(self) -> None:
        """Give the pool no more slots than are measured first."""
        bound = self._bound(0)
        log.info("auto_begins slots=%d most=%d bound=%r", self._auto.asked, bound.slots, bound.words)
        self._book.acked = self._acked
        self._scaler.update(max=self._auto.asked, min=self._auto.least)

    def round(self) -> None:
        """Look once. Does not block but for the autoscaler's own look; raises nothing."""
        try:
            self._look()
            self._failed = None
        except Exception as error:  # noqa: BLE001 - a thread that ended would never measure again
            if type(error) is not self._failed:
                log.error("auto_failed error=%s", type(error).__name__)
            self._failed = type(error)

    def _look(self) -> None:
        held_since_s = [since_s for each in self._book.held() if (since_s := each.slot_s) is not None]
        done = [self._done.popleft() for _ in range(len(self._done))]
        slots, now_s = self._scaler.processes, self._monotonic()
        seen = self._flow.look(
            now_s=now_s, slots=slots, done=done, held_since_s=held_since_s, refused=self._refusals()
        )
        if seen is None:
            return
        bound = self._bound(max(seen.message_bytes))
        step = self._auto.next(seen, now_s=now_s, bound=bound, held_back=self._scaler.held_back)
        if step is None:
            return
        log.info(
            "%s slots=%d before=%d per_s=%.3g task_s=%.3g message_bytes=%d why=%r",
            "auto_settled" if step.settled else "auto_measures", step.slots, slots, seen.level.per_s,
            quantile(seen.level.latencies_s, 0.5), quantile(seen.message_bytes, 0.5), step.why,
        )  # fmt: skip
        # With MIN, too: remote control may have set one that is above this MAX.
        self._scaler.update(max=step.slots, min=self._auto.least)

    def _acked(self, delivery: Taken) -> None:
        if (since_s := delivery.slot_s) is not None:
            self._done.append(Done(since_s, self._monotonic(), delivery.payload_bytes))


def auto_tuner(
    settings: Settings,
    *,
    limit: Limit,
    book: Any,
    scaler: Scaler,
    metrics: Any,
    response_bytes: Callable[[], int],
) -> AutoTuner:
    """Return a worker's tuner: ``metrics`` is its table, ``response_bytes`` the largest one held so far."""
    files = allowed()
    return AutoTuner(
        auto=Auto(least=settings.autoscale[1] if settings.autoscale else settings.concurrency),
        scaler=scaler,
        book=book,
        bound=lambda message_bytes: bound(
            settings, limit, files, held_bytes=message_bytes + response_bytes()
        ),
        refusals=lambda: refusals(metrics),
        unforked=book.unforked,
    )


def refusals(metrics: Any) -> tuple[int, int]:
    """Return how many calls the inference server answered as busy, and how many with an error, so far."""
    busy = failed = 0
    for histogram in metrics.histograms():
        if histogram.series.name == INFERENCES:
            status, number = int(histogram.series.labels["status"]), sum(histogram.buckets)
            if status in BUSY_STATUSES:
                busy += number
            elif status >= 400:
                failed += number
    return busy, failed
