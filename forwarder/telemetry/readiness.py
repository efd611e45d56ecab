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
#: Age in seconds at which a look tells nothing any more: what makes them hangs.
OLD_S = 30.0


class Readiness(threading.Thread):
    """Looks at the inference server again and again, in a thread of its own, under gevent's patch a greenlet.

    ``inference`` asks it, and may block for some seconds; it returns why the server is
    not ready. No process is forked ``unforked``. ``broker`` tells whether the broker was
    reached, by what its consumer and the lease keeper have met; it never blocks.
    """

    def __init__(
        self,
        *,
        inference: Callable[[], str | None],
        broker: Callable[[], bool],
        draining: Callable[[], bool],
        unforked: AbstractContextManager[object],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(name="readiness", daemon=True)
        self._inference = inference
        self._broker = broker
        self._draining = draining
        self._unforked = unforked
        self._monotonic = monotonic
        self._sleep = sleep
        self._at_s: float | None = None
        self._why_not: str | None = None

    def run(self) -> None:
        """Look for the life of the process."""
        while True:
            with self._unforked:
                self.look()
            self._sleep(ROUND_S)

    def look(self) -> None:
        """Look once. Blocks for the inference server's answer; never raises."""
        try:
            why_not = self._inference()
        except Exception as error:  # noqa: BLE001 - a thread that ended would look no more
            why_not = type(error).__name__
        if why_not and not self._why_not:
            log.warning("inference_away reason=%r", why_not)
        elif self._why_not and not why_not:
            log.info("inference_back")
        self._why_not, self._at_s = why_not, self._monotonic()

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the last look; None before the first."""
        at_s = self._at_s
        return None if at_s is None else self._monotonic() - at_s

    @property
    def inference_up(self) -> bool:
        """Return whether the inference server was ready at the last look, which is not old."""
        age_s = self.age_s
        return self._why_not is None and age_s is not None and age_s <= OLD_S

    def reasons(self) -> tuple[str, ...]:
        """Return ``draining``, ``broker`` and ``inference``, as many as hold. Never blocks."""
        found = {
            "draining": self._draining(),
            "broker": not self._broker(),
            "inference": not self.inference_up,
        }
        return tuple(reason for reason, holds in found.items() if holds)
