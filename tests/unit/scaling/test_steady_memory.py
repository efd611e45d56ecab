"""The soft limit under a steady load: tasks of one length and size, whose size shows early or late."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from forwarder.scaling.green_decisions import SoftLimit

HIGH = 0.7

#: The part of its size that a task has after a part of its time.
SHAPES: dict[str, Callable[[float], float]] = {
    "at once": lambda part: 1.0,
    "by and by": lambda part: part,
    "at the end": lambda part: float(part > 0.8),
}


@dataclass
class Load:
    """A queue that never ends: a free slot is filled at once. A round is a second."""

    slots_max: int
    task_s: float
    task_share: float
    base: float
    shape: str
    shares: list[float] = field(default_factory=list)
    caps: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    @property
    def fits(self) -> int:
        """Return how many whole tasks stay below the soft limit."""
        return min(self.slots_max, int((HIGH - self.base) / self.task_share))

    def run(self, rounds: int) -> None:
        chance = random.Random(1)
        limit, slots, ended = SoftLimit(slots_max=self.slots_max, high=HIGH), self.slots_max, 0
        tasks: list[tuple[float, float]] = []  # from, to
        for now in range(rounds):
            left = [task for task in tasks if task[1] > now]
            ended += len(tasks) - len(left)
            tasks = left
            while len(tasks) < slots:
                tasks.append((now, now + self.task_s * chance.uniform(0.8, 1.2)))
            size = sum(
                SHAPES[self.shape](min(1.0, (now + 1 - since) / (until - since))) for since, until in tasks
            )
            share = self.base + self.task_share * size
            slots = limit.next(running=len(tasks), ended=ended, share=share)
            self.shares.append(share)
            self.caps.append(limit.cap)
            self.running.append(len(tasks))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("task_s", [1, 3, 5, 20, 60])
@pytest.mark.parametrize(
    ("slots_max", "task_share", "base"), [(50, 0.02, 0.16), (50, 0.03, 0.16), (200, 0.0125, 0.05)]
)
def test_a_steady_load_settles_however_late_a_task_shows_its_size(
    slots_max: int, task_share: float, base: float, task_s: float, shape: str
) -> None:
    """Without waiting for tasks to follow, 200 slots swung between 1 and 200, at 1.8 times the limit."""
    load = Load(slots_max=slots_max, task_s=task_s, task_share=task_share, base=base, shape=shape)
    load.run(rounds := int(max(1800, 60 * task_s)))
    late = slice(rounds // 2, None)
    assert max(load.shares[late]) < 1
    assert min(load.caps[late]) >= load.fits * 0.7
    running = load.running[late]
    assert sum(running) / len(running) >= load.fits * 0.9
