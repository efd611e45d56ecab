"""How near to what so many slots could do: without the ramp at the start and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def steady_share(done_at: Sequence[float], *, tasks: int, slots: int, held_s: float) -> float | None:
    """Return the share of the ideal ``slots / held_s`` tasks a second that was reached while it could be.

    ``done_at`` has the second of each result, in any order; of a worker that was not waited
    for, fewer than ``tasks``. Two groups of ``slots`` results are compared by their mean moments: the
    second, by which every slot is on its next task, and the last after which there was still a
    task for every slot (it ends with number ``tasks - slots``, or with the last that came).
    Means, because tasks that began together end in waves, and waves get wider: the time between their ends
    would be longer than a slot's, that between their beginnings shorter. None without two groups.
    """
    times = sorted(done_at)
    last = min(len(times), tasks - slots)
    done = last - 2 * slots
    if done <= 0:
        return None
    passed_s = fmean(times[last - slots : last]) - fmean(times[slots : 2 * slots])
    return done * held_s / slots / passed_s if passed_s > 0 else None
