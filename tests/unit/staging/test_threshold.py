"""From which size on a body goes by way of the disk, by the sizes that come."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import pytest

from forwarder.inference.answers import AnswerReader
from forwarder.settings.model import Settings
from forwarder.staging.folder import StagingFolder
from forwarder.staging.staging import Staging
from forwarder.staging.threshold import IN_MEMORY_MAX, INPUTS, STEP_BYTES, Threshold, above_for

KIB = 1024
DEFAULT = 128 * KIB


@pytest.mark.parametrize(
    ("largest", "above"),
    [
        (0, STEP_BYTES),
        (1, STEP_BYTES),
        (STEP_BYTES, STEP_BYTES),
        (STEP_BYTES + 1, 2 * STEP_BYTES),
        (140 * KIB, 192 * KIB),
        (150 * KIB, 192 * KIB),
        (256 * KIB, 256 * KIB),
        (256 * KIB + 1, DEFAULT),
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
    for size in [200 * KIB] * INPUTS + [KIB] * (INPUTS - 1) + [10**9]:
        threshold.saw(size)
        seen.append(threshold.bytes)
    assert seen == [DEFAULT] * (INPUTS - 1) + [256 * KIB] * INPUTS + [DEFAULT]
    assert [record.message for record in caplog.records] == [
        f"auto_staging above_bytes={256 * KIB} before={DEFAULT} largest={200 * KIB} of=20",
        f"auto_staging above_bytes={DEFAULT} before={256 * KIB} largest={10**9} of=20",
    ]


def test_without_auto_it_stays_as_it_is_set() -> None:
    threshold = Threshold(1000)
    for _ in range(3 * INPUTS):
        threshold.saw(10)
    assert threshold.bytes == 1000


class Zeros:
    """An object that takes no memory but what is read of it."""

    tag = None

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def open(self, url: str, *, after_bytes: int, tag: str | None) -> Zeros:
        return Zeros(self.size_bytes)

    def read(self, bytes_max: int) -> bytes:
        number = min(bytes_max, self.size_bytes)
        self.size_bytes -= number
        return bytes(number)

    def close(self) -> None:
        """Nothing is open."""


def test_an_input_and_an_answer_that_stay_in_memory_take_less_than_a_mebibyte(tmp_path: Path) -> None:
    above = max(IN_MEMORY_MAX, Settings().stage_above_bytes)
    staging = Staging(
        folder=StagingFolder(parent=tmp_path, bytes_max=0, overrun_bytes=0, boot=""),
        sources={"s3": Zeros(above)},
        threshold=Threshold(above),
        input_bytes_max=above,
        answer_bytes_max=above,
        timeout_s=60.0,
    )

    def run() -> None:
        with staging.fetch("s3://bucket/key") as body, staging.spool() as spool:
            reader = AnswerReader(body_bytes_max=above, spool=spool)
            reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % above)
            for _ in range(above // STEP_BYTES):
                reader.feed(bytes(STEP_BYTES))
                reader.spill(within_s=1.0)
            reader.close()
            assert len(body if isinstance(body, bytes) else b"") == len(reader.body) == above

    run()  # what is imported and cached stays
    tracemalloc.start()
    try:
        run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024 * KIB
