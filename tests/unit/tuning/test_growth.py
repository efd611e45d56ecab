"""The memory of a task is measured in a process of its own."""

from __future__ import annotations

import os

from forwarder.tuning.growth import growth_bytes

MIB = 1024 * 1024


def test_what_the_work_adds_to_the_peak_is_told_and_the_warm_up_is_not() -> None:
    kept: list[bytes] = []  # what is given back at once may be missing from the peak
    found = growth_bytes(lambda: kept.append(b"w" * (200 * MIB)), lambda: b"x" * (50 * MIB), within_s=10)
    assert found is not None
    assert 45 * MIB < found < 100 * MIB


def test_a_process_that_dies_tells_nothing() -> None:
    assert growth_bytes(lambda: None, lambda: os._exit(1), within_s=10) is None
