"""What waits in the queues, looked up now and then and remembered: never at a scrape."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from forwarder.telemetry.gauges import Reading

log = logging.getLogger(__name__)

#: Seconds between two looks; on SQS each is a call that is billed.
ROUND_S = 15.0
SQS_ROUND_S = 60.0
#: Rounds after which what was seen last is no longer told: the look hangs.
ROUNDS_MAX = 3


@dataclass(frozen=True, slots=True)
class QueueBacklog:
    """How many messages wait in a queue, and for how long the next one has; None where nobody tells."""

    queue: str
    depth: int
    oldest_s: float | None


class Backlog(threading.Thread):
    """Looks in a thread of its own, under gevent's patch a greenlet: it shares a client with the tasks.

    ``look`` asks the broker, and blocks for its answer; no process is forked ``unforked``.
    While the broker can't be asked nothing is told: a number of yesterday would scale workers.
    """

    def __init__(
        self,
        *,
        look: Callable[[], Iterable[QueueBacklog]],
        round_s: float,
        unforked: AbstractContextManager[object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="backlog", daemon=True)
        self._look = look
        self._round_s = round_s
        self._unforked = unforked
        self._monotonic = monotonic
        self._stopped = threading.Event()
        self._seen: tuple[float, list[QueueBacklog]] | None = None
        self._failing: str | None = None

    def run(self) -> None:
        """Look until ``stop``, at first at once."""
        while True:
            with self._unforked:
                self.round()
            if self._stopped.wait(self._round_s):
                return

    def stop(self) -> None:
        """Look no more. Does not wait for a look that is on its way."""
        self._stopped.set()

    def round(self) -> None:
        """Look once. Blocks for the broker; never raises."""
        failing = None
        try:
            self._seen = self._monotonic(), list(self._look())
        except Exception as error:  # noqa: BLE001 - the next round tries again
            self._seen = None
            failing = type(error).__name__
        if failing and failing != self._failing:
            log.warning("backlog_unreadable error=%s", failing)
        self._failing = failing

    def readings(self) -> Iterator[Reading]:
        """Yield what was seen last. Does not block."""
        seen = self._seen
        if seen is None or self._monotonic() - seen[0] > ROUNDS_MAX * self._round_s:
            return
        for queue in seen[1]:
            yield Reading("forwarder_queue_depth", queue.depth, {"queue": queue.queue})
            if queue.oldest_s is not None:
                yield Reading("forwarder_queue_oldest_seconds", queue.oldest_s, {"queue": queue.queue})

    def waiting_age_s(self, queues: Collection[str]) -> float | None:
        """Return how old the last look is, where it saw messages wait in one of these. Does not block."""
        seen = self._seen
        if seen is None or not any(each.depth > 0 and each.queue in queues for each in seen[1]):
            return None
        return self._monotonic() - seen[0]
