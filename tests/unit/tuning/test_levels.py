"""The climb's decisions by table: what is measured next, and where the knee is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forwarder.tuning.levels import Level, knee, next_concurrency, noise, quantile, requests_for, why


def level(concurrency: int, per_s: float, *, busy: int = 0) -> Level:
    return Level(concurrency, per_s, [0.1] * 100, [10] * 100, busy=busy)


def slots(number: int) -> Callable[[int], Level]:
    """Serve a second a request with so many slots; what has none waits."""
    return lambda concurrency: level(concurrency, min(concurrency, number))


def refusing(number: int) -> Callable[[int], Level]:
    """Serve as many, and refuse the others."""
    return lambda concurrency: level(
        concurrency, min(concurrency, number), busy=10 if concurrency > number else 0
    )


def batching(concurrency: int) -> Level:
    """Serve ever more at a time, ever more slowly: the gain of a doubling falls from 90 % below 5 %."""
    return level(concurrency, 10 * concurrency / (1 + concurrency / 20))


def climb(server: Callable[[int], Level], concurrency_max: int = 128) -> list[Level]:
    levels: list[Level] = []
    while (concurrency := next_concurrency(levels, concurrency_max=concurrency_max)) is not None:
        levels.append(server(concurrency))
        assert len(levels) < 20
    return levels


@pytest.mark.parametrize(
    ("found", "silent"),
    [
        (Level(1, 0.0, broken=3), True),
        (Level(1, 0.0, broken=2, busy=1), False),
        (Level(1, 0.5, [0.1], [10], broken=2), False),
        (Level(1, 0.5, [0.1], [10]), False),
    ],
)
def test_a_server_is_silent_where_no_request_had_any_answer(found: Level, *, silent: bool) -> None:
    assert found.silent is silent


@pytest.mark.parametrize(
    ("server", "tried", "found"),
    [
        (slots(1), [1, 2], 1),
        (slots(2), [1, 2, 4], 2),
        (slots(6), [1, 2, 4, 8, 16, 6], 6),
        (slots(7), [1, 2, 4, 8, 16, 6], 8),
        (slots(8), [1, 2, 4, 8, 16, 6], 8),
        (slots(1000), [1, 2, 4, 8, 16, 32, 64, 128], 128),
        (refusing(1), [1, 2], 1),
        (refusing(6), [1, 2, 4, 8, 6], 6),
        (refusing(5), [1, 2, 4, 8, 6], 4),
        (batching, [1, 2, 4, 8, 16, 32, 64, 128], 128),
    ],
)
def test_the_knee_of_a_server(server: Callable[[int], Level], tried: list[int], found: int) -> None:
    levels = climb(server)
    assert [one.concurrency for one in levels] == tried
    best = knee(levels)
    assert best is not None
    assert best.concurrency == found


def test_little_more_is_not_worth_more_slots() -> None:
    rates = {1: 1.0, 2: 2.0, 4: 4.0, 8: 6.0, 16: 6.2, 6: 5.95}
    best = knee(climb(lambda concurrency: level(concurrency, rates[concurrency])))
    assert best is not None
    assert best.concurrency == 6


def test_no_more_is_tried_than_is_allowed() -> None:
    assert [one.concurrency for one in climb(slots(1000), concurrency_max=5)] == [1, 2, 4, 5]


def test_a_server_that_refuses_one_request_at_a_time_has_no_knee() -> None:
    levels = climb(lambda concurrency: Level(concurrency, 1.0, busy=2))
    assert [one.concurrency for one in levels] == [1]
    assert knee(levels) is None


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (slots(6), "6 at a time brought 6 answers/s, 16 no more than 6/s"),
        (refusing(6), "6 at a time brought 6 answers/s; at 8 the server refused 10 requests"),
        (
            slots(1000),
            "128 at a time brought 128 answers/s, and no more than 128 were tried (--max-concurrency)",
        ),
    ],
)
def test_the_reason_tells_what_more_would_bring(server: Callable[[int], Level], words: str) -> None:
    levels = climb(server)
    found = knee(levels)
    assert found is not None
    assert why(levels, found, concurrency_max=128) == words


@pytest.mark.parametrize(
    ("concurrency", "latency_s", "number"),
    [
        (1, None, 3),
        (1, 0.01, 60),
        (16, 0.01, 64),  # whole waves
        (1, 1.0, 5),
        (4, 1.0, 20),
        (8, 30.0, 24),
        (128, 0.01, 384),
    ],
)
def test_a_level_is_measured_with_whole_waves(concurrency: int, latency_s: float | None, number: int) -> None:
    assert requests_for(concurrency, latency_s) == number


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([7], 0.99) == 7


def test_the_noise_of_a_mean_is_its_standard_error_and_more_where_there_are_few() -> None:
    assert noise([1.0, 3.0] * 5000) == pytest.approx(0.5 / 100, rel=0.001)
    assert noise([1.0, 3.0] * 5) > 1.5 * 0.5 / 10**0.5
    assert noise([2.0] * 10) == noise([1.0]) == noise([0.0, 0.0]) == noise([]) == 0.0


def test_a_gain_that_is_asked_for_decides_whether_twice_as_many_pay() -> None:
    levels = [level(1, 1.0), level(2, 1.2)]
    assert next_concurrency(levels, concurrency_max=8) == 4
    assert next_concurrency(levels, concurrency_max=8, gain=0.3) is None
