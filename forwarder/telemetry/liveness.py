"""Whether the worker lives: its loops turn, and what it has taken comes to an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


class Beat:
    """When something that must turn again and again did so last.

    Called by its one owner at most ``every_s`` apart, read by any thread; takes no lock.
    Between ``pause`` and the next call it is not missed: the consumer's loop is left
    while the broker is away.
    """

    def __init__(
        self,
        reason: str,
        *,
        every_s: float,
        still_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = reason
        self._every_s = every_s
        self._still_s = still_s
        self._monotonic = monotonic
        self._last_s: float | None = None
        self._late_s = 0.0
        #: Whether it has turned at all.
        self.begun = False

    def __repr__(self) -> str:
        return f"<Beat {self.reason} age_s={self.age_s}>"

    def __call__(self) -> None:
        """Note a turn."""
        self._late_s = max(0.0, self.age_s - self._every_s)
        self._last_s = self._monotonic()
        self.begun = True

    def pause(self) -> None:
        """Note that it does not turn for now, and for a good reason."""
        self._last_s = None

    @property
    def turning(self) -> bool:
        """Return whether it has begun and is not paused."""
        return self._last_s is not None

    @property
    def age_s(self) -> float:
        """Return the seconds since it turned last; 0 while it need not."""
        last_s = self._last_s
        return 0.0 if last_s is None else self._monotonic() - last_s

    @property
    def late_s(self) -> float:
        """Return how many seconds late it turned last, or how late it is by now."""
        return max(self._late_s, self.age_s - self._every_s)

    @property
    def still(self) -> bool:
        """Return whether it has not turned for longer than it may."""
        return self.age_s > self._still_s


class Progress:
    """Whether there is work, and none of it ends, for longer than the longest task takes.

    ``ended`` counts what has ended, ``work_age_s`` tells how old the knowledge is that there
    is work that could end, None where there is none: both are cheap and are asked at each
    look. Looks may be made by several threads; the time runs from the first of them that
    saw the work to when it was known to be there last.
    """

    def __init__(
        self,
        *,
        ended: Callable[[], int],
        work_age_s: Callable[[], float | None],
        stall_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ended = ended
        self._work_age_s = work_age_s
        self._stall_s = stall_s
        self._monotonic = monotonic
        self._seen: tuple[int, float] | None = None  # what had ended when the work was seen first, and when

    def __repr__(self) -> str:
        return f"<Progress waited_s={self.look():.0f} stall_s={self._stall_s:g}>"

    def look(self) -> float:
        """Return for how many seconds there has been work and nothing ended."""
        ended, now_s, age_s = self._ended(), self._monotonic(), self._work_age_s()
        if age_s is None:
            self._seen = None
            return 0.0
        seen = self._seen
        if seen is None or seen[0] != ended:
            self._seen = seen = (ended, now_s)
        return max(0.0, now_s - age_s - seen[1])

    @property
    def stalled(self) -> bool:
        """Return whether that is longer than it may be."""
        return self.look() > self._stall_s


class Liveness:
    """What ``/livez`` answers: why the worker is not alive, in a word each.

    While it drains a worker is alive, whatever it does: the drain bounds itself. Takes
    no lock.
    """

    def __init__(self, *, beats: Sequence[Beat], progress: Progress, draining: Callable[[], bool]) -> None:
        self._beats = beats
        self._progress = progress
        self._draining = draining

    def reasons(self) -> tuple[str, ...]:
        """Return ``loop``, ``hub``, ``leases``, ``memory`` or ``stalled``, as many as hold."""
        if self._draining():
            return ()
        still = [beat.reason for beat in self._beats if beat.still]
        return (*still, "stalled") if self._progress.stalled else tuple(still)
