"""Measures the inference server level by level, within bounds on requests and time."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from forwarder.tuning.levels import WAVES_MIN, Level, next_concurrency, quantile, requests_for


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one request."""

    outcome: Literal["answered", "failed", "busy", "broken"]
    elapsed_s: float = 0.0
    response_bytes: int = 0


class Climb:
    """Asks with one, two, four, … requests at a time.

    ``ask`` makes the request with the given number, and never raises; it is called from
    as many threads. ``asked`` is called after each. The bounds hold for all levels
    together; past ``seconds_max`` no request begins, and what runs is waited for.
    """

    def __init__(
        self,
        *,
        ask: Callable[[int], Asked],
        asked: Callable[[int], object],
        requests_max: int,
        seconds_max: float,
        concurrency_max: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._asked = asked
        self._requests_left = requests_max
        self._concurrency_max = concurrency_max
        self._monotonic = monotonic
        self._until = monotonic() + seconds_max
        self._numbers = itertools.count()

    def levels(self) -> list[Level]:
        """Return what was measured, in the order in which it was. Blocks until it is."""
        levels: list[Level] = []
        latency_s: float | None = None
        while (concurrency := next_concurrency(levels, concurrency_max=self._concurrency_max)) is not None:
            number = requests_for(concurrency, latency_s)
            if self._requests_left < number:
                # Whole waves, as many as are left.
                number = self._requests_left // concurrency * concurrency
            if number < WAVES_MIN * concurrency or self._monotonic() >= self._until:
                break
            level = self._level(concurrency, number)
            if level is None:
                break  # the time was over in its midst
            levels.append(level)
            if level.latencies_s:
                latency_s = quantile(level.latencies_s, 0.5)
        return levels

    def _level(self, concurrency: int, number: int) -> Level | None:
        self._requests_left -= number
        todo = iter(range(number))
        turn = threading.Lock()
        cut = False

        def work() -> list[_Done]:
            nonlocal cut
            mine: list[_Done] = []
            while True:
                with turn:
                    place = next(todo, None)
                    if place is None:
                        return mine
                    began_s = self._monotonic()
                    if began_s >= self._until:
                        cut = True
                        return mine
                    which = next(self._numbers)
                asked = self._ask(which)
                mine.append(_Done(place, self._monotonic() - began_s, asked))
                self._asked(concurrency)

        with ThreadPoolExecutor(concurrency) as threads:
            workers = [threads.submit(work) for _ in range(concurrency)]
            done = [one for worker in workers for one in worker.result()]
        return None if cut else _level_of(concurrency, done)


@dataclass(frozen=True, slots=True)
class _Done:
    """A request by its place in the level, and for how many seconds it had its slot."""

    place: int
    held_s: float
    asked: Asked


def _level_of(concurrency: int, done: Sequence[_Done]) -> Level:
    outcomes = Counter(one.asked.outcome for one in done)
    answered = [one for one in done if one.asked.outcome in ("answered", "failed")]
    # By Little's law, over what lies between the first wave, which finds the server empty, and the last.
    # Answers by time would count both ends, and that is more than the gain that is looked for.
    full = [one.held_s for one in answered if concurrency <= one.place < len(done) - concurrency]
    return Level(
        concurrency=concurrency,
        per_s=concurrency * len(full) / sum(full) if full else 0.0,
        latencies_s=[one.asked.elapsed_s for one in answered],
        response_bytes=[one.asked.response_bytes for one in answered],
        busy=outcomes["busy"],
        broken=outcomes["broken"],
        failed=outcomes["failed"],
    )
