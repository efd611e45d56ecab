"""All of the measuring, in the order in which one part does not disturb the next."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from forwarder.tuning.asking import Asking
from forwarder.tuning.climb import Climb
from forwarder.tuning.growth import growth_bytes
from forwarder.tuning.levels import Level
from forwarder.tuning.screen import following

#: Requests, with the largest payloads, by which the memory of a task is measured.
GROWTH_REQUESTS = 4


def measure(
    asking: Asking,
    *,
    console: Console,
    requests_max: int,
    seconds_max: float,
    concurrency_max: int,
    monotonic: Callable[[], float] = time.monotonic,
) -> tuple[int | None, list[Level]]:
    """Return what a task adds to a process, in bytes, and what each concurrency brought.

    Blocks until the bounds are reached or more would tell nothing. Raises what
    staging raises for a body by reference that can't be read.
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
        with following(console, left) as asked:
            climb = Climb(
                ask=asking.ask,
                asked=asked,
                requests_max=left,
                seconds_max=until - monotonic(),
                concurrency_max=concurrency_max,
                monotonic=monotonic,
            )
            return growth, climb.levels()
