"""Large answers on prefork: all children read theirs while memory has room for that, else one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from forwarder.scaling.admission import TURN_BYTES
from forwarder.scaling.peak import COPIES

log = logging.getLogger(__name__)

POLL_S = 0.1


class Lock(Protocol):
    """Held by one process at a time."""

    def take(self) -> bool: ...
    def give_back(self) -> None: ...


def all_fit(answer_bytes: int, *, children: int, room_bytes: float) -> bool:
    """Return whether there is room for an answer of this size in each child, with all its copies.

    Who asks doesn't know what the others are about to read. If each takes no more than its
    part of the room, all may ask at the same moment.
    """
    return children * COPIES * answer_bytes <= room_bytes


class Turns:
    """Makes a child wait, before it reads on, until memory has room or it has its turn.

    The turn lasts until the task is over. Whoever has it goes on whatever is in use, so that
    it comes round. ``high_bytes`` is the soft limit, ``used_bytes`` returns what the container
    uses, None where nobody can tell: then nothing waits. ``siblings`` returns how many children
    there are, 0 where nobody can tell: then they are ``children_max``.
    """

    def __init__(
        self,
        *,
        lock: Lock,
        high_bytes: float,
        used_bytes: Callable[[], int | None],
        children_max: int,
        siblings: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._lock = lock
        self._high_bytes = high_bytes
        self._used_bytes = used_bytes
        self._children_max = children_max
        self._siblings = siblings
        self._monotonic = monotonic
        self._sleep = sleep
        self._has_turn = False
        self._read_bytes = 0
        self._allowed_bytes = TURN_BYTES

    def hold(self, number: int, within_s: float) -> None:
        """Note how many bytes of an answer there are; block until there may be twice as many.

        Raises TimeoutError after ``within_s`` seconds.
        """
        if number < self._read_bytes:  # another answer, or what there was is on the disk
            self.end()
        self._read_bytes = number
        if self._has_turn or number <= self._allowed_bytes:
            return
        wanted_bytes = 2 * number  # so that an answer costs few looks, however long it gets
        started = self._monotonic()
        while not self._may_have(wanted_bytes):
            if self._monotonic() - started >= within_s:
                raise TimeoutError("no memory for the rest of the answer")
            self._sleep(POLL_S)
        self._allowed_bytes = wanted_bytes
        if (waited_s := self._monotonic() - started) >= POLL_S:
            log.info("answer_waited_for_memory waited_s=%.1f", waited_s)

    def end(self, **_: object) -> None:
        """Give the turn back: the task is over, or its answer is gone."""
        if self._has_turn:
            self._has_turn = False
            self._lock.give_back()
        self._read_bytes, self._allowed_bytes = 0, TURN_BYTES

    def _may_have(self, wanted_bytes: int) -> bool:
        used_bytes = self._used_bytes()
        if used_bytes is None:
            return True
        children = self._siblings() or self._children_max
        if all_fit(wanted_bytes, children=children, room_bytes=self._high_bytes - used_bytes):
            return True
        self._has_turn = self._lock.take()
        return self._has_turn


class SharedLock:
    """A lock of processes that are forked once it is made; the kernel takes it from one that dies.

    A lock of POSIX belongs to a process, so the descriptor that all inherit serves each.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("forwarder-turns")

    def take(self) -> bool:
        """Return whether this process has it now. Does not block."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give_back(self) -> None:
        """Let another process have it."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def siblings() -> int:
    """Return how many children this process's parent has, itself among them; 0 where the kernel can't tell.

    Each thread has those that it forked: https://man7.org/linux/man-pages/man5/proc_pid_task.5.html
    """
    number = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{os.getppid()}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended, and its children are another's
                number += len((thread / "children").read_bytes().split())
    return number
