"""How much concurrency an inference server makes use of: pure decisions over what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Share by which throughput must grow with twice the concurrency to be worth it.
GAIN = 0.05

#: Requests and seconds that a level is measured for, where its requests are short and where they are long.
REQUESTS_MIN = 60
LEVEL_S = 5.0
#: Requests of each slot: what lies between the first and the last wave makes the rate.
WAVES_MIN = 3


@dataclass(frozen=True, slots=True)
class Level:
    """What came of so many requests at a time; seconds and bytes of those that were answered.

    ``per_s`` are the answers a second. ``busy`` requests were refused by a server that
    had no room, ``broken`` had no answer, ``failed`` an answer of 400 and above.
    """

    concurrency: int
    per_s: float
    latencies_s: Sequence[float] = field(repr=False, default=())
    response_bytes: Sequence[int] = field(repr=False, default=())
    busy: int = 0
    broken: int = 0
    failed: int = 0

    @property
    def refused(self) -> bool:
        """Return whether the server could not serve so many."""
        return self.busy > 0 or self.broken > 0

    @property
    def silent(self) -> bool:
        """Return whether no request had any answer."""
        return self.broken > 0 and not self.busy and not self.latencies_s

    @property
    def useless(self) -> bool:
        """Return whether most of what was answered was no result."""
        return self.failed > len(self.latencies_s) // 2


def next_concurrency(
    levels: Sequence[Level], *, concurrency_max: int, concurrency_min: int = 1, gain: float = GAIN
) -> int | None:
    """Return the concurrency to measure next, None when the knee is found.

    From ``concurrency_min`` it doubles until that no longer pays (brings less than ``gain`` more) or the
    server refuses, and looks once between the last two that matter. A server that answers with errors is
    left alone.
    """
    if not levels:
        return concurrency_min
    last = levels[-1]
    if last.useless:
        return None
    if any(level.concurrency > last.concurrency for level in levels):
        return None  # that was the look between
    if last.refused:
        return _between(levels[-2].concurrency, last.concurrency) if len(levels) > 1 else None
    if len(levels) > 1 and last.per_s < levels[-2].per_s * (1 + gain):
        return _between(levels[-3].concurrency, levels[-2].concurrency) if len(levels) > 2 else None
    further = min(2 * last.concurrency, concurrency_max)
    return further if further > last.concurrency else None


def knee(levels: Sequence[Level]) -> Level | None:
    """Return the least concurrency that comes within 5 % of the best rate; None where none was of use."""
    served = sorted(
        (level for level in levels if not level.refused and not level.useless and level.latencies_s),
        key=lambda one: one.concurrency,
    )
    if not served:
        return None
    best = max(level.per_s for level in served)
    return next(level for level in served if level.per_s * (1 + GAIN) >= best)


def why(
    levels: Sequence[Level], found: Level, *, concurrency_max: int, bound: str = "--max-concurrency"
) -> str:
    """Return in words why no more concurrency than the knee's is of use; ``bound`` is what set the most."""
    beyond = [level for level in levels if level.concurrency > found.concurrency]
    refused = [level for level in beyond if level.refused]
    flat = [level for level in beyond if not level.refused]
    rate = f"{found.concurrency} at a time brought {found.per_s:.3g} answers/s"
    if flat:
        most = max(flat, key=lambda level: level.concurrency)
        return f"{rate}, {most.concurrency} no more than {most.per_s:.3g}/s"
    if refused:
        least = min(refused, key=lambda level: level.concurrency)
        return f"{rate}; at {least.concurrency} the server refused {least.busy + least.broken} requests"
    if found.concurrency >= concurrency_max:
        return f"{rate}, and no more than {concurrency_max} were tried ({bound})"
    return f"{rate}; more was not tried within the bounds on requests and time"


def requests_for(concurrency: int, latency_s: float | None) -> int:
    """Return how many requests to measure a level with; whole waves, else the last slots idle."""
    if latency_s is None:
        return WAVES_MIN * concurrency
    in_time = LEVEL_S * concurrency / max(latency_s, 1e-6)
    waves = math.ceil(min(REQUESTS_MIN, in_time) / concurrency)
    return max(WAVES_MIN, waves) * concurrency


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of the values does not pass (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def noise(values: Sequence[float]) -> float:
    """Return how far off their mean is by chance, as a share of it: its standard error.

    Of few values it is taken for more: those tell little about how they vary.
    """
    mean = sum(values) / max(1, len(values))
    if len(values) < 2 or not mean:
        return 0.0
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values)) / mean * (1 + 5 / len(values))


def _between(low: int, high: int) -> int | None:
    middle = (low + high) // 2
    return middle if low < middle < high else None
