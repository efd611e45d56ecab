"""Which stored outcomes are final: a committed task is never run again."""

from __future__ import annotations

from forwarder.forwarding.errors import DeadLettered, InvalidMessage, UnknownTask
from forwarder.forwarding.ports import Commits, Stored

#: Failures whose messages are in the dead letters: an operator may send them to be run again.
PUT_ASIDE_CODES = frozenset({DeadLettered.code, InvalidMessage.code, UnknownTask.code})


def find_committed(commits: Commits, task_id: str) -> Stored | None:
    """Return the final outcome of a task, None when it is still to be run. Blocks for one read."""
    stored = commits.find(task_id)
    return None if stored is None or stored.code in PUT_ASIDE_CODES else stored
