"""How many slots are open: by what waits, and by how much memory is used. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Rounds, of a second each, in which slots were not needed before the first of them closes.
IDLE_ROUNDS = 30
#: Of the slots that are open, the part that closes in one round.
CLOSING_PART = 10
#: Rounds after which one more slot is tried where memory leaves no room for one like the others: what holds
#: it there may be no task's, and then nothing else would ever bring slots back.
BAND_ROUNDS = 30
#: Rounds in which slots were free until the number of those that may be filled rises all the same.
SPARE_ROUNDS = 5
#: Rounds in which that stops short of the number of slots that last passed the soft limit.
CEILING_ROUNDS = 600
#: What uses less of the limit counts as this: nothing divides by zero.
LEAST_SHARE = 0.001


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

    ``next`` is called once a second. A number of tasks shows what it costs only when so many run and
    have run. So above ``high`` no slot is filled, and ``cap``, what may run afterwards, is three
    quarters of what ran or fewer, where so many would still be too much; it falls again when
    those it allows run. Below, as many tasks must begin and end under a cap until it rises, by a quarter
    at most and only so far that more of their kind would stay below; one that is not made use of
    rises after ``SPARE_ROUNDS``. Where there is no room for even one more it rises by one every
    ``BAND_ROUNDS``, and to the number that was too high last only after ``CEILING_ROUNDS``.
    """

    slots_max: int
    high: float
    cap: int = field(init=False)
    _round: int = 0
    _moved: int = 0  # the round in which the cap last changed
    _above: bool = False
    _ran: int = 0  # what is too many: so many, and the largest share since; 0 for nothing
    _worst: float = 0.0
    _ceiling: int = 0  # what was too many last, and in which round
    _passed: int = -CEILING_ROUNDS
    _ended: int = 0  # how many had ended when those began by whom the cap is judged
    _peak: float = 0.0  # the largest share since

    def __post_init__(self) -> None:
        """Begin with all slots."""
        self.cap = self.slots_max

    def next(self, *, running: int, ended: int, share: float) -> int:
        """Return how many slots may be filled now, from 1 to ``slots_max``.

        ``running`` tasks use ``share`` of the limit now; ``ended`` have, since the start.
        """
        self._round += 1
        was_above, self._above = self._above, share >= self.high
        if self._above:
            if not was_above:
                self._ran = 0
            if running:  # otherwise it is no task's
                self._lower(running, ended, share)
            return 1
        self._peak = share if was_above else max(self._peak, share)
        self._raise(running, ended, share)
        return self.cap

    def _lower(self, running: int, ended: int, share: float) -> None:
        filled = min(self.cap, running)
        if not self._ran:
            self._ceiling, self._passed = filled, self._round
        if not self._ran or self.cap // 2 <= running <= self.cap:
            self._ran, self._worst = filled, share
        self._worst = max(self._worst, share)
        fits = int(self._ran * self.high / self._worst)
        self._move(min(self.cap, self._ran - _quarter(self._ran), fits), ended + running)

    def _raise(self, running: int, ended: int, share: float) -> None:
        step, rested = _quarter(self.cap), self._round - self._moved
        if ended - self._ended >= self.cap:
            share, self._peak, self._ended = self._peak, 0.0, ended
        elif running + step > self.cap or rested < SPARE_ROUNDS:
            return
        room = int(self.cap * self.high / max(share, LEAST_SHARE)) - self.cap
        if room > 0:
            self._move(self.cap + min(step, room), ended)
        elif rested >= BAND_ROUNDS and (
            self.cap + 1 < self._ceiling or self._round - self._passed >= CEILING_ROUNDS
        ):
            self._move(self.cap + 1, ended)

    def _move(self, cap: int, ended: int) -> None:
        self.cap = max(1, min(self.slots_max, cap))
        self._moved, self._ended, self._peak = self._round, ended, 0.0


def _quarter(number: int) -> int:
    return max(1, number // 4)
