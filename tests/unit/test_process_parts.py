"""What one process needs to run tasks."""

from __future__ import annotations

import pytest

from forwarder.process_parts import linger_s
from forwarder.settings.model import Settings


@pytest.mark.parametrize(
    ("slots", "setting_s", "found_s"),
    [(1, None, None), (15, None, None), (16, None, 0.05), (16, 0.0, None), (4, 0.2, 0.2)],
)
def test_records_gather_where_slots_are_many_or_the_setting_says(
    slots: int, setting_s: float | None, found_s: float | None
) -> None:
    assert linger_s(Settings(firehose_linger_s=setting_s), slots=slots) == found_s
