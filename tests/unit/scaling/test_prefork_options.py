"""What Celery's worker is asked for, from the settings."""

from __future__ import annotations

import pytest

from forwarder.scaling.container import Limit
from forwarder.scaling.peak import BASE_BYTES, CHILD_BYTES, worker_bytes
from forwarder.scaling.prefork_autoscaler import MemoryAutoscaler
from forwarder.scaling.prefork_options import child_bytes_max, prefork_options, scaling
from forwarder.settings.model import Settings
from forwarder.telemetry.metrics import ProcessMetrics

MB = 1024 * 1024
LIMIT = Limit(1000 * MB, "setting")


def test_without_autoscale_children_are_replaced_only_as_asked() -> None:
    assert prefork_options(Settings(), LIMIT) == {"max_tasks_per_child": None, "max_memory_per_child": None}
    options = prefork_options(Settings(max_tasks_per_child=5, max_memory_per_child_mb=300), LIMIT)
    assert options == {"max_tasks_per_child": 5, "max_memory_per_child": 300 * 1024}  # Celery counts KiB


def test_with_autoscale_the_pool_has_its_bounds_and_our_autoscaler() -> None:
    options = prefork_options(Settings(autoscale=(8, 2), max_tasks_per_child=5), LIMIT)
    assert options["autoscale"] == (8, 2)
    assert options["autoscaler_cls"] is MemoryAutoscaler
    assert options["max_tasks_per_child"] == 5


def test_with_autoscale_a_child_may_have_what_it_shares_and_its_part_of_what_min_children_may_have() -> None:
    assert child_bytes_max(Settings(autoscale=(8, 2)), LIMIT) == BASE_BYTES + (700 * MB - BASE_BYTES) // 2
    settings = Settings(autoscale=(8, 2), broker_url="sqs://")
    shared = worker_bytes(settings)
    assert shared > BASE_BYTES
    assert child_bytes_max(settings, LIMIT) == shared + (700 * MB - shared) // 2
    assert child_bytes_max(Settings(autoscale=(8, 2), max_memory_per_child_mb=50), LIMIT) == 50 * MB


@pytest.mark.parametrize("minimum", [2, 9, 26])
def test_with_autoscale_children_that_fit_are_not_replaced_for_what_they_share(
    minimum: int, caplog: pytest.LogCaptureFixture
) -> None:
    bound = child_bytes_max(Settings(autoscale=(30, minimum)), LIMIT)
    assert bound is not None
    assert bound > BASE_BYTES + CHILD_BYTES
    assert not caplog.records


def test_a_min_of_which_no_child_can_keep_to_its_part_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert child_bytes_max(Settings(autoscale=(40, 30)), LIMIT) == BASE_BYTES + (700 * MB - BASE_BYTES) // 30
    child_bytes_max(Settings(autoscale=(8, 4), worker_rss_mb=200), LIMIT)
    assert [record.args for record in caplog.records] == [(30, 21, 24), (4, 160, 200)]


def test_percent_and_megabytes_become_parts_and_bytes() -> None:
    counts = ProcessMetrics()
    made = scaling(Settings(worker_rss_mb=84, memory_low_percent=40, autoscale_step=3), LIMIT, counts)
    assert (made.low, made.high, made.step, made.child_bytes) == (0.4, 0.7, 3, 84 * MB)
    assert (made.limit, made.counts) == (LIMIT, counts)
    assert scaling(Settings(), LIMIT, counts).child_bytes == 0
