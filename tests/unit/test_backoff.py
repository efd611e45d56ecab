"""How long to wait before the next try, by table."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.backoff import Backoff, parse_retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("00000000000031", 31.0),
        ("99999999999999", 3600.0),
        ("9" * 5000, 3600.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60.0),
        ("Friday, 02-Jan-26 03:05:05 GMT", 60.0),
        ("Fri Jan  2 03:05:05 2026", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("Fri, 02 Jan 2099 03:00:00 GMT", 3600.0),
        ("Fri, 02 Jan 2026 03:05:05 +9999", None),
        ("Fri, 02 Jan 2026 03:05:05 +99999999999999", None),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
        ("1e9", None),
        ("²", None),
        ("٣", None),
        ("", None),
    ],
)
def test_retry_after_is_read_in_all_of_its_forms(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, ?\d+ Jan \d+ \d+:\d+:\d+ ([+-]\d+|GMT)"))
def test_no_retry_after_brings_the_caller_down(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0.0 <= seconds <= 3600.0


def test_waits_double_up_to_their_longest_and_stay_there_for_ever() -> None:
    backoff = Backoff(base_s=0.5, max_s=3.0)
    waits_s = [backoff.wait_s(failed, lambda _low, high: high) for failed in (1, 2, 3, 4, 5, 100_000)]
    assert waits_s == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("backoff", "lows_s"),
    [
        (Backoff(base_s=0.5, max_s=3.0), [0.25, 0.5, 1.0, 1.5]),
        (Backoff(base_s=0.5, max_s=3.0, least_share=0.0), [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_jitter_starts_at_its_share_of_the_bound(backoff: Backoff, lows_s: list[float]) -> None:
    assert [backoff.wait_s(failed, lambda low, _high: low) for failed in (1, 2, 3, 4)] == lows_s
