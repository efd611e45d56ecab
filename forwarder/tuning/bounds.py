"""The most slots that memory, file descriptors and the operator allow."""

from __future__ import annotations

from forwarder.scaling.container import Limit
from forwarder.scaling.descriptors import Allowed, slots_within
from forwarder.scaling.peak import COPIES, SLOT_BYTES, mib, worker_bytes
from forwarder.settings.model import Settings
from forwarder.tuning.advice import size
from forwarder.tuning.auto import Bound


def bound(settings: Settings, limit: Limit, files: Allowed, *, held_bytes: int) -> Bound:
    """Return the least of what they allow, and its arithmetic.

    ``held_bytes`` are the largest message and the largest response that were seen. A
    prefork pool is bounded by its autoscaler, which looks at the children that there are.
    """
    bounds = [Bound(settings.slots_max, "MAX of --autoscale")]
    by_files = slots_within(settings, files)
    if by_files is not None:
        bounds.append(Bound(by_files, f"what {files.hard} file descriptors suffice for"))
    if settings.pool == "gevent":
        room = int(limit.bytes * settings.memory_high_percent / 100) - worker_bytes(settings)
        each = SLOT_BYTES + COPIES * held_bytes
        words = f"{mib(max(0, room))} of memory / ({size(SLOT_BYTES)} + {COPIES} x {size(held_bytes)})"
        bounds.append(Bound(max(0, room) // each, words))
    return min(bounds, key=lambda one: one.slots)
