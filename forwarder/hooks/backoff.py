"""How long to wait between two tries of a delivery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Bounded tries with exponentially growing, jittered waits between them (seconds).

    A wait lies between half the bound and the bound, so that a crowd spreads
    out and nobody returns at once.
    """

    tries: int
    base_s: float
    max_s: float

    def wait_s(self, failed: int, uniform: Callable[[float, float], float]) -> float:
        """Return the wait after the ``failed``-th failed try, counted from 1."""
        bound_s = min(self.max_s, self.base_s * 2.0 ** min(failed - 1, 30))
        return uniform(bound_s / 2, bound_s)
