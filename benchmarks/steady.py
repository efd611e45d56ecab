"""How near to what so many slots could do: without the ramp at the start and at the end."""

from __future__ import annotations

from collections.abc import Sequence


def steady_share(done_at: Sequence[float], *, tasks: int, slots: int, held_s: float) -> float | None:
    """Return the share of the ideal ``slots / held_s`` tasks a second that was reached while it could be.

    ``done_at`` has the second of each result, in any order; of a worker that was not waited
    for, fewer than ``tasks``. The window begins with the result number ``slots``: every slot
    has had a task and a next one by then. It ends with the last result after which there was
    still a task for every slot, which is number ``tasks - slots``, or with the last that came.
    Of a worker that works in waves both are the end of a wave. None when nothing is in between.
    """
    times = sorted(done_at)
    last = min(len(times), tasks - slots)
    done = last - slots
    if done <= 0 or times[last - 1] <= times[slots - 1]:
        return None
    return done * held_s / slots / (times[last - 1] - times[slots - 1])
