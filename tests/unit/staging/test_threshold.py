"""From which size on a body goes by way of the disk, by the sizes that come."""

from __future__ import annotations

import logging

import pytest

from forwarder.staging.threshold import INPUTS, STEP_BYTES, Threshold, above_for

KIB = 1024
DEFAULT = 256 * KIB


@pytest.mark.parametrize(
    ("largest", "above"),
    [
        (0, STEP_BYTES),
        (1, STEP_BYTES),
        (STEP_BYTES, STEP_BYTES),
        (STEP_BYTES + 1, 2 * STEP_BYTES),
        (400 * KIB, 448 * KIB),
        (512 * KIB, 512 * KIB),
        (512 * KIB + 1, DEFAULT),
        (10**9, DEFAULT),
    ],
)
def test_memory_takes_all_inputs_or_those_that_it_takes_anyway(largest: int, above: int) -> None:
    assert above_for([0, largest], default=DEFAULT) == above


def test_inputs_that_are_small_send_no_answer_to_the_disk() -> None:
    threshold = Threshold(DEFAULT, follows=True)
    for _ in range(INPUTS):
        threshold.saw(KIB)
    assert threshold.bytes == DEFAULT


def test_it_follows_twenty_inputs_at_a_time_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    threshold = Threshold(DEFAULT, follows=True)
    seen = []
    for size in [300 * KIB] * INPUTS + [KIB] * (INPUTS - 1) + [10**9]:
        threshold.saw(size)
        seen.append(threshold.bytes)
    assert seen == [DEFAULT] * (INPUTS - 1) + [320 * KIB] * INPUTS + [DEFAULT]
    assert [record.message for record in caplog.records] == [
        f"auto_staging above_bytes={320 * KIB} before={DEFAULT} largest={300 * KIB} of=20",
        f"auto_staging above_bytes={DEFAULT} before={320 * KIB} largest={10**9} of=20",
    ]


def test_without_auto_it_stays_as_it_is_set() -> None:
    threshold = Threshold(1000)
    for _ in range(3 * INPUTS):
        threshold.saw(10)
    assert threshold.bytes == 1000
