"""Whether a figure stays flat: the slope that outliers don't bend."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

#: Pairs that are looked at; all of them for up to 600 points.
PAIRS_MAX = 180_000


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between any two points: half of the points may be wild.

    https://en.wikipedia.org/wiki/Theil-Sen_estimator. Of many points a fixed random choice of
    pairs is looked at. Raises ValueError with fewer than two different places.
    """
    count = len(points)
    if count * (count - 1) // 2 <= PAIRS_MAX:
        pairs = [(a, b) for index, a in enumerate(points) for b in points[index + 1 :]]
    else:
        source = random.Random(count)
        pairs = [(source.choice(points), source.choice(points)) for _ in range(PAIRS_MAX)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if a[0] != b[0]]
    if not slopes:
        raise ValueError("no two points have different places")
    return statistics.median(slopes)
