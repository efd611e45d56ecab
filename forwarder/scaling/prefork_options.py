"""What the worker asks Celery for, so that a prefork pool stays within its memory."""

from __future__ import annotations

from typing import Any

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.prefork_autoscaler import Counts, MemoryAutoscaler, Scaling
from forwarder.settings.model import Settings


def prefork_options(settings: Settings, limit: Limit) -> dict[str, Any]:
    """Return the options of Celery's worker: when children are replaced, and who scales the pool."""
    bound = child_bytes_max(settings, limit)
    options: dict[str, Any] = {
        "max_tasks_per_child": settings.max_tasks_per_child,
        # Celery's unit is KiB, and what it compares is the most that was ever resident (ru_maxrss).
        "max_memory_per_child": bound and bound // 1024,
    }
    if settings.autoscale is not None:
        options |= {"autoscale": settings.autoscale, "autoscaler_cls": MemoryAutoscaler}
    return options


def child_bytes_max(settings: Settings, limit: Limit) -> int | None:
    """Return what a child may have had before it is replaced; None is without bound.

    Not given, with an autoscaler: the size of which MIN children and their parent still
    fit. One that passes it would shrink the pool to MIN, and then past the limit.
    """
    if settings.max_memory_per_child_mb is not None:
        return settings.max_memory_per_child_mb * MIB
    if settings.autoscale is None:
        return None
    _, minimum = settings.autoscale
    return int(limit.bytes * settings.memory_high_percent / 100) // (minimum + 1)


def scaling(settings: Settings, limit: Limit, counts: Counts) -> Scaling:
    """Return what the autoscaler goes by."""
    return Scaling(
        limit=limit,
        low=settings.memory_low_percent / 100,
        high=settings.memory_high_percent / 100,
        step=settings.autoscale_step,
        idle_s=settings.autoscale_idle_s,
        child_bytes=(settings.worker_rss_mb or 0) * MIB,
        counts=counts,
    )
