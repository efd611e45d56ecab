"""What ``/readyz`` answers: which of the services that a worker needs are there, looked up beforehand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

log = logging.getLogger(__name__)

#: Seconds between two looks.
ROUND_S = 5.0
#: Seconds by which a look may be late before the last one tells nothing any more: what makes them hangs.
LATE_S = 25.0


class Look(threading.Thread):
    """Looks at one service again and again, in a thread of its own, under gevent's patch a greenlet.

    ``ask`` asks it, and may block for some seconds; it returns why the service is not
    there, None where it is. No process is forked ``unforked``. ``name`` is the service's in
    the log. ``round_s`` are between two looks at a service that is there; one that is away
    is looked at every ``ROUND_S``.
    """

    def __init__(
        self,
        *,
        name: str,
        ask: Callable[[], str | None],
        unforked: AbstractContextManager[object],
        round_s: float = ROUND_S,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._ask = ask
        self._unforked = unforked
        self._round_s = round_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._at_s: float | None = None
        self._why_not: str | None = None

    def run(self) -> None:
        """Look for the life of the process."""
        while True:
            with self._unforked:
                self.look()
            self._sleep(ROUND_S if self._why_not else self._round_s)

    def look(self) -> None:
        """Look once. Blocks for the service's answer; never raises."""
        try:
            why_not = self._ask()
        except Exception as error:  # noqa: BLE001 - a thread that ended would look no more
            why_not = type(error).__name__
        if why_not and not self._why_not:
            log.warning("%s_away reason=%r", self.name, why_not)
        elif self._why_not and not why_not:
            log.info("%s_back", self.name)
        self._why_not, self._at_s = why_not, self._monotonic()

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the last look; None before the first."""
        at_s = self._at_s
        return None if at_s is None else self._monotonic() - at_s

    @property
    def up(self) -> bool:
        """Return whether the service was there at the last look, which is not old."""
        age_s = self.age_s
        return self._why_not is None and age_s is not None and age_s <= self._round_s + LATE_S


class Readiness:
    """Which of its services the worker lacks, and whether it is told to stop.

    ``broker`` tells whether the broker was reached, by what its consumer and the lease
    keeper have met; it never blocks.
    """

    def __init__(
        self, *, inference: Look, results: Look, broker: Callable[[], bool], draining: Callable[[], bool]
    ) -> None:
        self._inference = inference
        self._results = results
        self._broker = broker
        self._draining = draining

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the last look at the inference server; None before the first."""
        return self._inference.age_s

    def reasons(self) -> tuple[str, ...]:
        """Return ``draining``, ``broker``, ``inference`` and ``results``, as many as hold. Never blocks."""
        found = {
            "draining": self._draining(),
            "broker": not self._broker(),
            "inference": not self._inference.up,
            "results": not self._results.up,
        }
        return tuple(reason for reason, holds in found.items() if holds)
