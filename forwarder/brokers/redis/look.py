"""A look at the messages that wait in Redis lists, which takes nothing away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def waiting(channel: Any, queues: Sequence[str], number: int) -> list[bytes]:
    """Return up to ``number`` messages as they lie there, each list's oldest first.

    ``channel`` is kombu's. Blocks for a round trip for each list; raises what redis-py raises.
    """
    found: list[bytes] = []
    for queue in queues:
        for step in channel.priority_steps:
            # Messages are pushed at the left and taken at the right.
            found += reversed(channel.client.lrange(channel._q_for_pri(queue, step), len(found) - number, -1))
            if len(found) >= number:
                return found
    return found
