"""The climb with a server that is a function, and its bounds."""

from __future__ import annotations

import threading

import pytest

from forwarder.tuning.climb import Asked, Climb, _Done, _level_of


class Clock:
    """Tells a time that moves by ``step_s`` at each look."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self._now_s += self._step_s
            return self._now_s


def climb(outcome: str = "answered", *, requests_max: int = 1000, seconds_max: float = 1e9) -> Climb:
    return Climb(
        ask=lambda number: Asked(outcome, 1.0, 10),  # type: ignore[arg-type]
        asked=lambda concurrency: None,
        requests_max=requests_max,
        seconds_max=seconds_max,
        concurrency_max=8,
        monotonic=Clock(0.01),
    )


def test_each_request_has_a_number_of_its_own() -> None:
    numbers: list[int] = []
    asked: list[int] = []

    def ask(number: int) -> Asked:
        numbers.append(number)
        return Asked("answered", 1.0, 10)

    Climb(
        ask=ask,
        asked=asked.append,
        requests_max=40,
        seconds_max=1e9,
        concurrency_max=4,
        monotonic=Clock(0.01),
    ).levels()
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(asked) == len(numbers)
    assert set(asked) <= {1, 2, 4}


@pytest.mark.parametrize("requests_max", [2, 3, 7, 20, 100])
def test_no_more_requests_are_made_than_allowed(requests_max: int) -> None:
    levels = climb(requests_max=requests_max).levels()
    assert sum(len(level.latencies_s) for level in levels) <= requests_max


def test_what_the_end_of_the_time_cuts_short_does_not_count() -> None:
    assert climb(seconds_max=0.03).levels() == []


@pytest.mark.parametrize("outcome", ["busy", "broken"])
def test_a_server_that_refuses_is_asked_no_more(outcome: str) -> None:
    (level,) = climb(outcome).levels()
    assert level.concurrency == 1
    assert level.refused


def test_a_server_that_answers_with_errors_is_asked_no_more() -> None:
    (level,) = climb("failed").levels()
    assert level.useless
    assert not level.refused
    assert level.failed == len(level.latencies_s) == 3


@pytest.mark.parametrize(("concurrency", "per_s"), [(3, 3.0), (6, 6.0), (8, 6.0), (16, 6.0)])
def test_the_rate_is_that_of_a_server_whose_slots_are_all_held(concurrency: int, per_s: float) -> None:
    """Six slots of a second, first come first served: who came when, and was answered when."""
    number, slots = 5 * concurrency, 6
    free_at = [0.0] * slots
    callers = [0.0] * concurrency
    done = []
    for place in range(number):
        began_s = min(callers)
        callers.remove(began_s)
        ends_s = max(began_s, min(free_at)) + 1
        free_at[free_at.index(min(free_at))] = ends_s
        callers.append(ends_s)
        done.append(_Done(place, ends_s - began_s, Asked("answered", ends_s - began_s, 10)))
    assert _level_of(concurrency, done).per_s == pytest.approx(per_s, rel=0.03)
