"""Scales with round numbers, and lines that keep their peaks."""

from __future__ import annotations

import pytest

from forwarder.loadtest.charts import POINTS_MAX, Line, chart, number, scale, thinned


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 10], [0, 2, 4, 6, 8, 10]),
        ([3, 582], [0, 200, 400, 600]),
        ([0, 0.07], [0, 0.02, 0.04, 0.06, 0.08]),
        ([5, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 0], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-10, 10], [-10, -5, 0, 5, 10]),
    ],
)
def test_ticks_are_round_and_hold_every_value(values: list[float], ticks: list[float]) -> None:
    assert scale(values, 0, 100, from_zero=True).ticks() == pytest.approx(ticks)


def test_an_exact_end_ends_with_the_last_value() -> None:
    across = scale([0, 37], 0, 100, from_zero=True, exact_end=True)
    assert across.at(37) == 100
    assert across.ticks() == [0, 10, 20, 30]


def test_a_scale_that_need_not_begin_at_zero_shows_small_changes() -> None:
    up = scale([100.0, 101.0], 0, 100, from_zero=False)
    assert (up.low, up.high) == (100, 101)


def test_a_long_line_keeps_its_peaks() -> None:
    points = [(float(x), 900.0 if x == 1234 else 1.0) for x in range(10_000)]
    kept = thinned(points)
    assert len(kept) <= POINTS_MAX
    assert (1234.0, 900.0) in kept


def test_a_short_line_is_left_as_it_is() -> None:
    points = [(float(x), 1.0) for x in range(POINTS_MAX)]
    assert thinned(points) == points


def test_a_chart_without_points_says_so() -> None:
    assert "nothing was measured" in chart(title="t", lines=[Line(label="a", points=[])], x_title="s")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0004, "0.0004"),
        (8.336, "8.34"),
        (12, "12"),
        (1234.5, "1,234"),
        (-2.5, "-2.5"),
        (1e6, "1,000,000"),
    ],
)
def test_numbers_are_for_the_eye(value: float, text: str) -> None:
    assert number(value) == text
