"""The shape of a load: how many tasks, how long and how large each, and when each is sent."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)

ArrivalKind = Literal["burst", "steady", "poisson", "ramp", "waves"]


@dataclass(frozen=True, slots=True)
class Span:
    """From ``low`` to ``high``, both included; seconds or bytes. Of one value where they are the same."""

    low: float
    high: float

    def even(self, source: random.Random) -> float:
        """Return a value, each as likely as any other."""
        return source.uniform(self.low, self.high)

    def by_size(self, source: random.Random) -> int:
        """Return a whole number whose order of magnitude is as likely as any other."""
        if self.low <= 0 or self.low == self.high:
            return round(source.uniform(self.low, self.high))
        factor: float = (self.high / self.low) ** source.random()
        return round(min(self.high, self.low * factor))

    def __str__(self) -> str:
        """Return it as it may be given."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """When tasks are sent: a burst at once, or by a rate in tasks a second, or in waves.

    ``ramp`` begins with none and rises evenly to the rate; ``poisson`` has the rate on
    average. Waves are of ``wave`` tasks, ``period_s`` apart.
    """

    kind: ArrivalKind
    rate: float = 0.0
    wave: int = 0
    period_s: float = 0.0

    def offsets_s(self, tasks: int, source: random.Random) -> Iterator[float]:
        """Yield for each task how many seconds after the first it is sent."""
        at_s = 0.0
        for index in range(tasks):
            match self.kind:
                case "burst":
                    yield 0.0
                case "steady":
                    yield index / self.rate
                case "poisson":
                    yield at_s
                    at_s += source.expovariate(self.rate)
                case "ramp":
                    # At time t of T the rate is R t / T and R t^2 / 2T tasks are sent; T is 2 tasks / R.
                    yield 2 * (index * tasks) ** 0.5 / self.rate
                case "waves":
                    yield index // self.wave * self.period_s

    def __str__(self) -> str:
        """Return it as it is given."""
        if self.kind == "waves":
            return f"waves:{self.wave}/{self.period_s:g}"
        return self.kind if self.kind == "burst" else f"{self.kind}:{self.rate:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One load. ``response_bytes`` None leaves the answer to the model server."""

    tasks: int
    sleep_s: Span
    payload_bytes: Span
    response_bytes: Span | None
    arrival: Arrival

    def payloads(self, source: random.Random) -> Iterator[dict[str, Any]]:
        """Yield each task's payload; the sample model server does as it says."""
        for index in range(self.tasks):
            behaviour: dict[str, Any] = {"sleep_s": round(self.sleep_s.even(source), 3)}
            if self.response_bytes is not None:
                behaviour["huge_bytes"] = self.response_bytes.by_size(source)
            text = "x" * self.payload_bytes.by_size(source)
            yield {"args": {"numbers": [index], "text": text, "behaviour": behaviour}}

    def as_json(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "tasks": self.tasks,
            "sleep_s": str(self.sleep_s),
            "payload_bytes": str(self.payload_bytes),
            "response_bytes": None if self.response_bytes is None else str(self.response_bytes),
            "arrival": str(self.arrival),
        }


def seconds_span(text: str) -> Span:
    """Return ``15`` or ``5..30`` as a span. Raises ValueError."""
    return _span(text, float)


def size_span(text: str) -> Span:
    """Return ``20k`` or ``1k..5M`` as a span of bytes. Raises ValueError."""
    return _span(text, size)


def size(text: str) -> float:
    """Return a size such as ``512``, ``20k``, ``1.5M`` (1024 each) in bytes. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    return float(found[1]) * _FACTORS[found[2].lower()]


def arrival(text: str) -> Arrival:
    """Return an arrival as it is given on the command line. Raises ValueError."""
    kind, _, rest = text.partition(":")
    if kind == "burst" and not rest:
        return Arrival("burst")
    if kind in ("steady", "poisson", "ramp") and float(rest) > 0:
        return Arrival(kind, rate=float(rest))  # type: ignore[arg-type]
    if kind == "waves":
        wave, _, period = rest.partition("/")
        if int(wave) > 0 and float(period) > 0:
            return Arrival("waves", wave=int(wave), period_s=float(period))
    raise ValueError(text)


def _span(text: str, one: Any) -> Span:
    low, dots, high = text.partition("..")
    span = Span(one(low), one(high if dots else low))
    if not 0 <= span.low <= span.high < float("inf"):
        raise ValueError(text)
    return span
