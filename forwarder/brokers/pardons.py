"""Lets every worker know of a delivery that is not to count against its task."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from forwarder.brokers.background import ForkGate, in_background
from forwarder.brokers.deliveries import Delivery

log = logging.getLogger(__name__)

#: Seconds between tries while the store is away, and how many in a row: it has a minute to come back.
RETRY_S = 5.0
TRIES_MAX = 12


class Pardons:
    """Notes pardons one after the other, in the background, as long as the store takes them at all.

    ``note`` stores one for a task id, where every worker looks; it blocks and may
    raise. A pardon that can't be noted is dropped: that delivery then counts.
    """

    def __init__(
        self,
        *,
        note: Callable[[str], None],
        gate: ForkGate,
        in_background: Callable[[Callable[[], None]], None] = in_background,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._note = note
        self._gate = gate
        self._in_background = in_background
        self._sleep = sleep
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._busy = False

    def __repr__(self) -> str:
        return f"<Pardons waiting={len(self._waiting)}>"

    def add(self, delivery: Delivery) -> None:
        """Pardon one delivery. Does not block, never raises."""
        if delivery.task_id is None:
            return  # it has no result either
        with self._lock:
            self._waiting.append(delivery.task_id)
            if self._busy:
                return
            self._busy = True
        try:
            self._in_background(self._note_all)
        except RuntimeError:  # no thread is to be had: the next one notes this too
            self._busy = False

    def leave(self) -> None:
        """Say what was not noted; the process ends. Does not block."""
        if self._waiting:
            log.warning("pardons_dropped number=%d", len(self._waiting))

    def _note_all(self) -> None:
        failed = 0
        while (task_id := self._next(give_up=failed >= TRIES_MAX)) is not None:
            try:
                with self._gate:
                    self._note(task_id)
                with self._lock:
                    self._waiting.popleft()
                failed = 0
            except Exception as error:  # noqa: BLE001 - whatever it was, a later try may do
                failed += 1
                if failed == 1:
                    log.warning("pardon_failing task_id=%s error=%s", task_id, type(error).__name__)
                self._sleep(RETRY_S)

    def _next(self, *, give_up: bool) -> str | None:
        """Return the next task id, which waits until it is noted; with None this thread's work is over."""
        with self._lock:
            if give_up:
                self.leave()
                self._waiting.clear()
            if not self._waiting:
                self._busy = False
                return None
            return self._waiting[0]
