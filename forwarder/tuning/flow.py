"""What a worker's own tasks tell of a number of slots: how many end a second while all are filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forwarder.tuning.levels import GAIN, LEVEL_S, WAVES_MIN, Level, noise

#: Part of the slots that must be filled on average. With less, nothing waits for a slot, or the broker
#: does not bring tasks as fast as they end: more slots would bring nothing then, and less is not seen.
FULL = 0.75
#: How far off a rate may be by chance, where times in a slot vary: so far, one that is twice as high is not
#: taken for the same in any of 200 simulated workers. Where single tasks are very long, so many are enough.
NOISE = 0.11
TASKS_ENOUGH = 400


@dataclass(frozen=True, slots=True)
class Done:
    """A task that ended: when its message was taken and settled (monotonic), and how large that was."""

    taken_s: float
    left_s: float
    message_bytes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a number of slots, all filled; the level's latencies are the times in a slot."""

    level: Level
    message_bytes: Sequence[int]


class Flow:
    """Measures whatever number of slots there is, again and again, for as long as it stays the same.

    After a change one task of each slot is left out: those find a server that is not
    yet as busy. Then come three of each slot, and five seconds, at least, and as many
    as it takes for a rate that is not chance.
    """

    def __init__(self) -> None:
        self._slots = 0
        self._changed_s = 0.0
        self._fresh = 0
        self._begun_s: float | None = None
        self._done: list[Done] = []
        self._refused = (0, 0)

    def look(
        self,
        *,
        now_s: float,
        slots: int,
        done: Sequence[Done],
        held_since_s: Sequence[float],
        refused: tuple[int, int],
    ) -> Seen | None:
        """Return a measurement where one is complete and the slots were filled.

        ``done`` has ended since the last look, what was taken at ``held_since_s``
        has not; ``slots`` is their number now. ``refused`` is how often the inference
        server was busy, and how often it answered with an error, since the worker's start.
        """
        if slots != self._slots:
            self._slots, self._changed_s, self._fresh, self._begun_s = slots, now_s, 0, None
        if self._begun_s is None:
            self._fresh += sum(one.taken_s >= self._changed_s for one in done)
            if self._fresh >= slots:
                self._begin(now_s, refused)
            return None
        self._done += done
        if len(self._done) < WAVES_MIN * slots or now_s - self._begun_s < LEVEL_S:
            return None
        ended = self._done
        held_s = [one.left_s - one.taken_s for one in ended]
        if len(ended) < TASKS_ENOUGH and noise(held_s) > NOISE:
            return None
        filled = self._filled(now_s, self._begun_s, held_since_s)
        busy, failed = (now - before for now, before in zip(refused, self._refused, strict=True))
        self._begin(now_s, refused)
        if filled < FULL * slots:
            return None
        # Little's law: what ends a second is what is inside on average, by how long each stays. Tasks that
        # end in waves, counted by time, would be off by a wave.
        per_s = filled * len(held_s) / max(sum(held_s), 1e-9)
        if busy <= GAIN * len(held_s):
            busy = 0  # a few may be another client's doing
        level = Level(slots, per_s, held_s, busy=busy, failed=failed)
        return Seen(level, [one.message_bytes for one in ended])

    def _begin(self, now_s: float, refused: tuple[int, int]) -> None:
        self._begun_s = now_s
        self._done = []
        self._refused = refused

    def _filled(self, now_s: float, begun_s: float, held_since_s: Sequence[float]) -> float:
        """Return how many slots were filled on average since the window began."""
        ended_s = sum(min(now_s, one.left_s) - max(begun_s, one.taken_s) for one in self._done)
        running_s = sum(now_s - max(begun_s, since_s) for since_s in held_since_s)
        return (ended_s + running_s) / (now_s - begun_s)
