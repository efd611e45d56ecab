"""What ``/status`` tells: who the worker is, what it does and what bounds it; no payload, no secret."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, Protocol

#: Tasks in flight that are listed, the oldest first.
TASKS_MAX = 100

#: Packages whose versions explain most of what is seen.
PACKAGES = ("celery", "kombu", "gevent", "redis", "boto3", "ddtrace")


class InFlight(Protocol):
    """A message that the worker holds."""

    @property
    def task_id(self) -> str | None: ...
    @property
    def queue(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def taken_s(self) -> float: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def begun(self) -> bool: ...


def versions() -> dict[str, str]:
    """Return the versions of what the worker stands on. Reads files: call it once."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def in_flight(deliveries: Sequence[InFlight], *, payload_bytes: int, now_s: float) -> dict[str, Any]:
    """Return how much is in flight and which tasks that is. ``now_s`` is monotonic, as ``taken_s``."""
    oldest = sorted(deliveries, key=lambda delivery: delivery.taken_s)
    return {
        "count": len(oldest),
        "payload_bytes": payload_bytes,
        "oldest_s": _age_s(oldest[0], now_s) if oldest else None,
        "tasks": [
            {
                "id": delivery.task_id,
                "queue": delivery.queue,
                "age_s": _age_s(delivery, now_s),
                "delivery": delivery.number,
                "begun": delivery.begun,
                "payload_bytes": delivery.payload_bytes,
            }
            for delivery in oldest[:TASKS_MAX]
        ],
    }


def numbers(values: Iterable[tuple[object, float]]) -> dict[str, float]:
    """Return metrics as ``name{label=value}`` to number; what is no number in JSON is left out."""
    return {str(series): value for series, value in values if math.isfinite(value)}


def _age_s(delivery: InFlight, now_s: float) -> float:
    return round(now_s - delivery.taken_s, 3)
