"""What the worker asks Celery for, so that a prefork pool stays within its memory."""

from __future__ import annotations

import logging
from typing import Any

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.peak import child_bytes, worker_bytes
from forwarder.scaling.prefork_autoscaler import Counts, MemoryAutoscaler, Scaling
from forwarder.settings.model import Settings

log = logging.getLogger(__name__)


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

    Not given, with an autoscaler: what the worker has, which a child shares and which counts as its
    own here, and an equal part for each of MIN children of what is then left. One that passes it would
    shrink the pool to MIN, and then past the limit. A part that no child can keep to is warned of.
    """
    if settings.max_memory_per_child_mb is not None:
        return settings.max_memory_per_child_mb * MIB
    if settings.autoscale is None:
        return None
    _, minimum = settings.autoscale
    shared = worker_bytes(settings)
    own = max(0, int(limit.bytes * settings.memory_high_percent / 100) - shared) // minimum
    if own < child_bytes(settings):
        log.warning(
            "autoscale_min_too_large min=%d child_may_have_mb=%d child_needs_mb=%d",
            minimum, own // MIB, child_bytes(settings) // MIB,
        )  # fmt: skip
    return shared + own


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
