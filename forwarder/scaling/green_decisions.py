"""How many slots are open: by what waits, and by how much memory is used. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Rounds, of a second each, in which slots were not needed before the first of them closes.
IDLE_ROUNDS = 30
#: Of the slots that are open, the part that closes in one round.
CLOSING_PART = 10
#: Of the soft limit, the part below which slots come back at once.
BACK_PART = 0.93
#: Rounds between there and the soft limit after which one more slot is tried: what holds the memory
#: there may be no task's, and then nothing else would ever bring slots back.
BAND_ROUNDS = 30


@dataclass(slots=True, kw_only=True)
class Demand:
    """Follows the number of tasks that could run at a time: those that do, and those that wait.

    ``next`` is called once a second. Slots double for as long as more is wanted,
    and close one by one (a tenth a round where they are many) once none of the
    last ``IDLE_ROUNDS`` rounds wanted them.
    """

    least: int
    most: int
    _wanted: deque[int] = field(default_factory=lambda: deque(maxlen=IDLE_ROUNDS))

    def next(self, *, slots: int, running: int, waiting: int | None) -> int:
        """Return how many slots are to be open, from ``least`` to ``most``; ``slots`` are now.

        Never fewer than run, within those bounds. A ``waiting`` of None is a
        backlog that can't be read: nothing changes.
        """
        slots = max(self.least, min(self.most, slots))
        if waiting is None:
            return slots
        wanted = running + waiting
        self._wanted.append(wanted)
        if wanted > slots:
            return min(self.most, wanted, 2 * slots)
        needed = max(self._wanted)
        if len(self._wanted) < IDLE_ROUNDS or needed >= slots:
            return slots
        return max(self.least, running, needed, slots - max(1, slots // CLOSING_PART))


@dataclass(slots=True, kw_only=True)
class SoftLimit:
    """Lowers the number of slots above ``high``, a share of the memory limit, and raises it below.

    ``next`` is called once a second. In the band just below ``high`` the number
    rises by one every ``BAND_ROUNDS`` rounds only, so that one task's memory
    does not move it to and fro.
    """

    slots_max: int
    high: float
    _kept: int = 0  # rounds in the band since the cap last moved

    def next(self, *, cap: int, held: int, share: float) -> int:
        """Return the new cap, from 1 to ``slots_max``; ``held`` tasks use ``share`` of the limit now."""
        self._kept += 1
        if share >= self.high:
            # From what is held: a cap that is not reached lowers nothing.
            filled = max(1, min(cap, held))
            step = -max(1, filled // 4)
            cap = filled
        elif share < self.high * BACK_PART:
            step = max(1, cap // 8)
        elif self._kept >= BAND_ROUNDS:
            step = 1
        else:
            return cap
        self._kept = 0
        return max(1, min(self.slots_max, cap + step))
