"""All of the measuring, in the order in which one part does not disturb the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from forwarder.scaling.peak import COPIES
from forwarder.tuning.asking import Asking
from forwarder.tuning.child import TASKS, Child, NotMeasured
from forwarder.tuning.climb import Climb
from forwarder.tuning.growth import growth_bytes
from forwarder.tuning.levels import Level
from forwarder.tuning.screen import following

#: Requests, with the largest payloads, by which the memory of a task is measured.
GROWTH_REQUESTS = 4

#: Share of the requests and of the time that a look at a worker's children may take.
CHILD_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Found:
    """What a task adds to a process, in bytes; what a child has; and what each concurrency brought.

    None where it could not be measured; for a child ``child_why`` says why.
    """

    growth_bytes: int | None
    child: Child | None
    child_why: str
    levels: list[Level]


def measure(
    asking: Asking,
    *,
    child_of: Callable[[int, float], Child],
    console: Console,
    requests_max: int,
    seconds_max: float,
    concurrency_max: int,
    monotonic: Callable[[], float] = time.monotonic,
) -> Found:
    """Measure until the bounds are reached or more would tell nothing; blocks for as long.

    ``child_of`` measures a worker's children for a task's memory in bytes, within so
    many seconds. Raises what staging raises for a body by reference that can't be read.
    """
    until = monotonic() + seconds_max
    with asking.inputs_read():
        by_size = sorted(range(len(asking.samples)), key=lambda number: asking.samples[number].message_bytes)
        # Before anything starts a thread: it forks.
        growth = growth_bytes(
            lambda: asking.ask(by_size[0]),
            lambda: [asking.ask(number) for number in by_size[-GROWTH_REQUESTS:]],
            within_s=seconds_max / 2,
        )
        left = requests_max - GROWTH_REQUESTS - 1
        child, why = None, f"--max-requests leaves no {TASKS} for it"
        if CHILD_SHARE * left >= TASKS:
            largest = asking.samples[by_size[-1]].message_bytes
            try:
                with console.status("  the processes of a worker of its own"):
                    child = child_of(max(COPIES * largest, growth or 0), CHILD_SHARE * seconds_max)
            except NotMeasured as error:
                why = str(error)
            left -= TASKS
        with following(console, left) as asked:
            climb = Climb(
                ask=asking.ask,
                asked=asked,
                requests_max=left,
                seconds_max=until - monotonic(),
                concurrency_max=concurrency_max,
                monotonic=monotonic,
            )
            return Found(growth, child, why, climb.levels())
