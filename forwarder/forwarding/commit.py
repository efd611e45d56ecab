"""When a task looks for its outcome, and which outcomes are final: a committed task is never run again."""

from __future__ import annotations

from typing import Any

from forwarder.forwarding.ports import Commits, Stored
from forwarder.forwarding.task_call import dead_after, is_redelivered, retries_of


def must_look(commits: Commits, request: Any) -> bool:
    """Return whether a task has to look before it asks: it may be committed. No IO."""
    return commits.looks_first or bool(is_redelivered(request) or dead_after(request) or retries_of(request))


def find_committed(commits: Commits, task_id: str) -> Stored | None:
    """Return the final outcome of a task, None when it is still to be run. Blocks for one read."""
    stored = commits.find(task_id)
    return stored if stored is not None and stored.is_final else None
