"""What one more prefork process takes, and what it is measured with: the figure and the pure parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forwarder.scaling.container import Limit
from forwarder.scaling.peak import child_bytes, mib, worker_bytes
from forwarder.settings.model import Settings
from forwarder.tuning.samples import Sample

#: A child that is alone shares less with the main process.
CHILDREN = 2
#: After two tasks a child has 98 % of what it has after a thousand: docs/tuning.md.
TASKS = 20
TASKS_MIN = 4

#: Part of the memory limit within which the measuring itself must stay.
ROOM = 0.5


@dataclass(frozen=True, slots=True)
class Child:
    """What the largest of the children has for itself, in bytes, after so many tasks of all of them."""

    unique_bytes: int
    tasks: int


class NotMeasured(Exception):
    """There is no figure; the message says why."""


def check_room(settings: Settings, limit: Limit, *, task_bytes: int) -> None:
    """Raise NotMeasured where tasks of that size might take more memory than the measuring may."""
    needed = worker_bytes(settings) + CHILDREN * (child_bytes(settings) + task_bytes)
    if needed > ROOM * limit.bytes:
        raise NotMeasured(f"it could take {mib(needed)}, more than half of the memory there is")


def payloads(samples: Sequence[Sample]) -> Iterator[Any]:
    """Return TASKS payloads, the largest first; what would write somewhere is left out."""
    by_size = sorted(samples, key=lambda sample: sample.message_bytes, reverse=True)
    for sample in itertools.islice(itertools.cycle(by_size), TASKS):
        payload = sample.payload
        payload.pop("destination_path", None)
        yield payload
