"""Which dead letters the broker refuses: their queue is full, or the worker lacks the right."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class RefusedLetters:
    """The queues whose last dead letter was refused; logged when that begins, changes and ends."""

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}

    def __contains__(self, queue: str) -> bool:
        """Return whether the last letter of this queue was refused."""
        return queue in self._causes

    def note(self, queue: str, cause: str) -> None:
        """Remember a refusal."""
        if self._causes.get(queue) != cause:
            log.error("dead_letters_refused queue=%s error=%s", queue, cause)
        self._causes[queue] = cause

    def end(self, queue: str) -> None:
        """Note that a letter was taken."""
        if self._causes.pop(queue, None):
            log.info("dead_letters_taken_again queue=%s", queue)
