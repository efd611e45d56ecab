"""How many slots a worker should have, from what its own tasks tell while it works: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forwarder.scaling.peak import SLOT_BYTES
from forwarder.tuning.flow import Seen
from forwarder.tuning.levels import GAIN, Level, knee, next_concurrency, noise, quantile, why

#: How many times as large, or as long in a slot, tasks are that call for a new measurement, and how many
#: times as small. What a message has below the memory of a slot is no size.
CHANGED = 4
#: Seconds between the end of a measurement and the beginning of the next.
AGAIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Bound:
    """The most slots that there may be, and what bounds them in words."""

    slots: int
    words: str


@dataclass(frozen=True, slots=True)
class Step:
    """How many slots there may be from now on, and why; ``settled`` ends a measurement."""

    slots: int
    why: str
    settled: bool


class Auto:
    """Measures ``least`` slots, twice as many, and so on until that no longer pays, and stays at the best.

    Where chance may have made twice as many look of use, or of none, they are
    measured once more. Never fewer than ``least``, which is the operator's own
    number: no measurement makes the worker slower than that.
    """

    def __init__(self, *, least: int, again_s: float = AGAIN_S) -> None:
        self.asked = self.least = least
        self._again_s = again_s
        self._seen: list[Seen] = []
        self._settled: Seen | None = None
        self._settled_s = 0.0
        self._is_blind = False  # settled by nothing: no level was of use

    def __repr__(self) -> str:
        return f"<Auto asked={self.asked} levels={len(self._seen)} settled={self._settled is not None}>"

    def next(self, seen: Seen, *, now_s: float, bound: Bound, held_back: bool) -> Step | None:
        """Return what follows from one more measurement, None where nothing changes.

        ``held_back`` tells that memory keeps the pool from having as many slots as were asked for.
        """
        if self._settled is not None:
            return self._follow(self._settled, seen, now_s)
        slots = seen.level.concurrency
        if slots > self.asked or (slots < self.asked and not held_back):
            return None  # they open or close yet
        if slots < self.least:
            return None  # memory will give them back, or tasks of less memory come
        once_more = bool(self._seen) and self._seen[-1].level.concurrency == slots
        self._seen.append(_together(self._seen.pop(), seen) if once_more else seen)
        further = None
        if slots == self.asked:
            gain, doubt = _gain(self._levels)
            if abs(gain - GAIN) < doubt and not once_more:
                return None
            # Half: too many slots cost little, too few cost answers.
            further = next_concurrency(
                self._levels,
                concurrency_max=max(self.least, bound.slots),
                concurrency_min=self.least,
                gain=GAIN + doubt / 2,
            )
        if further is not None:
            self.asked = further
            rate = self._levels[-1].per_s
            return Step(further, f"{slots} at a time brought {rate:.3g} tasks/s", settled=False)
        return self._settle(now_s, bound, held_back=held_back)

    @property
    def _levels(self) -> Sequence[Level]:
        return [seen.level for seen in self._seen]

    def _settle(self, now_s: float, bound: Bound, *, held_back: bool) -> Step:
        best = knee(self._levels)
        self._settled = next((seen for seen in self._seen if seen.level is best), self._seen[0])
        self._settled_s = now_s
        self._is_blind = best is None
        self.asked = self._settled.level.concurrency
        if best is None:
            return Step(self.asked, "the inference server refuses tasks or answers with errors", settled=True)
        words = why(self._levels, best, concurrency_max=bound.slots, bound=bound.words)
        if held_back:
            words = f"{words}; memory holds no more"
        return Step(self.asked, words, settled=True)

    def _follow(self, settled: Seen, seen: Seen, now_s: float) -> Step | None:
        reason = _change(settled, seen)
        if self._is_blind and not (seen.level.refused or seen.level.useless):
            reason = "the inference server serves tasks again"
        if reason is None or now_s - self._settled_s < self._again_s:
            return None
        self._settled, self._seen, self.asked = None, [], self.least
        return Step(self.least, reason, settled=False)


def _gain(levels: Sequence[Level]) -> tuple[float, float]:
    """Return the share that the last level brings more than the one before, and how far off it is by chance.

    Both are 0 where that decides nothing.
    """
    if len(levels) < 2:
        return 0.0, 0.0
    before, last = levels[-2:]
    if last.concurrency < before.concurrency or last.refused or last.useless:
        return 0.0, 0.0
    ratio = last.per_s / max(before.per_s, 1e-9)
    return ratio - 1, ratio * math.hypot(noise(before.latencies_s), noise(last.latencies_s))


def _together(before: Seen, now: Seen) -> Seen:
    """Return two measurements of the same slots as one, its rate over the time of both."""
    both = before.level, now.level
    elapsed_s = sum(len(level.latencies_s) / max(level.per_s, 1e-9) for level in both)
    held_s = [*before.level.latencies_s, *now.level.latencies_s]
    busy, failed = (sum(level.busy for level in both), sum(level.failed for level in both))
    level = Level(now.level.concurrency, len(held_s) / max(elapsed_s, 1e-9), held_s, busy=busy, failed=failed)
    return Seen(level, [*before.message_bytes, *now.message_bytes])


def _change(before: Seen, now: Seen) -> str | None:
    """Return in words what is by much another than it was, None where nothing is."""
    sizes = [[max(SLOT_BYTES, size) for size in seen.message_bytes] for seen in (before, now)]
    if _by_much(*sizes):
        return "messages of {1:.0f} B instead of {0:.0f} B".format(*map(_median, sizes))
    if now.level.concurrency != before.level.concurrency:
        return None  # then the times in a slot are others, too
    times = [seen.level.latencies_s for seen in (before, now)]
    if _by_much(*times):
        return "tasks of {1:.3g} s instead of {0:.3g} s".format(*map(_median, times))
    return None


def _by_much(before: Sequence[float], now: Sequence[float]) -> bool:
    """Return whether its quartiles have all moved: where short and long tasks mix, the median alone jumps."""
    pairs = [(quantile(before, share), quantile(now, share)) for share in (0.25, 0.5, 0.75)]
    return all(late >= CHANGED * early for early, late in pairs) or all(
        early >= CHANGED * late for early, late in pairs
    )


def _median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)
