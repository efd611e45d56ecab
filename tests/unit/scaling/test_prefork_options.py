"""What Celery's worker is asked for, from the settings."""

from __future__ import annotations

from forwarder.scaling.container import Limit
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


def test_with_autoscale_a_child_may_have_its_part_of_what_min_children_and_their_parent_may_have() -> None:
    assert child_bytes_max(Settings(autoscale=(8, 2)), LIMIT) == int(1000 * MB * 0.7) // 3
    assert child_bytes_max(Settings(autoscale=(8, 2), max_memory_per_child_mb=50), LIMIT) == 50 * MB


def test_percent_and_megabytes_become_parts_and_bytes() -> None:
    counts = ProcessMetrics()
    made = scaling(Settings(worker_rss_mb=84, memory_low_percent=40, autoscale_step=3), LIMIT, counts)
    assert (made.low, made.high, made.step, made.child_bytes) == (0.4, 0.7, 3, 84 * MB)
    assert (made.limit, made.counts) == (LIMIT, counts)
    assert scaling(Settings(), LIMIT, counts).child_bytes == 0
