"""The shape of a load, read from the command line and turned into tasks."""

from __future__ import annotations

import itertools
import random

import pytest

from forwarder.loadtest.shape import Arrival, Shape, Span, arrival, seconds_span, size, size_span


@pytest.mark.parametrize(
    ("text", "span"),
    [("15", Span(15, 15)), ("0", Span(0, 0)), ("0.5..2", Span(0.5, 2)), ("3..3", Span(3, 3))],
)
def test_seconds_are_one_value_or_from_to(text: str, span: Span) -> None:
    assert seconds_span(text) == span


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("512", 512), ("20k", 20_480), ("1.5M", 1_572_864), ("2 MiB", 2_097_152), ("1gb", 1_073_741_824)],
)
def test_sizes_have_units_of_1024(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "x", "-1", "2..1", "1..", "inf", "1..inf", "nan", "1..2..3"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        seconds_span(text)
    with pytest.raises(ValueError, match=r".*"):
        size_span(text)


def test_sizes_spread_over_their_orders_of_magnitude() -> None:
    source = random.Random(1)
    drawn = [Span(64, 65_536).by_size(source) for _ in range(2000)]
    assert min(drawn) >= 64
    assert max(drawn) <= 65_536
    assert 0.45 < sum(value < 2048 for value in drawn) / len(drawn) < 0.55  # 5 of 10 doublings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("burst", [0, 0, 0, 0, 0, 0]),
        ("steady:2", [0, 0.5, 1, 1.5, 2, 2.5]),
        ("waves:2/10", [0, 0, 10, 10, 20, 20]),
    ],
)
def test_tasks_come_when_the_arrival_says(text: str, expected: list[float]) -> None:
    assert list(arrival(text).offsets_s(6, random.Random(1))) == expected


def test_a_ramp_rises_to_its_rate() -> None:
    offsets = list(arrival("ramp:10").offsets_s(1000, random.Random(1)))
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(200, rel=0.01)  # 1000 tasks at 5/s on average
    assert sum(at > 190 for at in offsets) == pytest.approx(10 * 10, rel=0.1)
    assert sum(at < 20 for at in offsets) == pytest.approx(10, abs=2)


def test_poisson_arrivals_have_the_rate_on_average_and_are_not_even() -> None:
    offsets = list(arrival("poisson:50").offsets_s(2000, random.Random(1)))
    gaps = [after - before for before, after in itertools.pairwise(offsets)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert sum(gap < 1 / 100 for gap in gaps) / len(gaps) == pytest.approx(0.39, abs=0.05)


@pytest.mark.parametrize(
    "text", ["", "burst:1", "steady", "steady:0", "ramp:-1", "waves:10", "waves:0/1", "waves:1/0", "never"]
)
def test_what_is_no_arrival_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        arrival(text)


@pytest.mark.parametrize("text", ["burst", "steady:2.5", "poisson:30", "ramp:10", "waves:100/30"])
def test_an_arrival_is_shown_as_it_is_given(text: str) -> None:
    assert str(arrival(text)) == text


def test_payloads_tell_the_model_server_what_to_do_and_are_the_same_for_the_same_seed() -> None:
    shape = Shape(
        tasks=5,
        sleep_s=Span(1, 2),
        payload_bytes=Span(100, 100),
        response_bytes=Span(10, 1000),
        arrival=Arrival("burst"),
    )
    payloads = list(shape.payloads(random.Random(7)))
    assert payloads == list(shape.payloads(random.Random(7)))
    assert len(payloads) == 5
    for payload in payloads:
        assert len(payload["args"]["text"]) == 100
        assert 1 <= payload["args"]["behaviour"]["sleep_s"] <= 2
        assert 10 <= payload["args"]["behaviour"]["huge_bytes"] <= 1000


def test_without_a_response_size_the_answer_is_the_model_servers() -> None:
    shape = Shape(
        tasks=1, sleep_s=Span(0, 0), payload_bytes=Span(0, 0), response_bytes=None, arrival=Arrival("burst")
    )
    (payload,) = shape.payloads(random.Random(1))
    assert "huge_bytes" not in payload["args"]["behaviour"]
