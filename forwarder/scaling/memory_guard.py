"""Watches the worker's memory: above the soft limit fewer slots are filled, under it they come back."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from forwarder.scaling.admission import Admission
from forwarder.scaling.allocator import trimmer
from forwarder.scaling.green_decisions import SoftLimit

log = logging.getLogger(__name__)

ROUND_S = 1.0
#: Rounds without a refused message until the budget of bytes is said to be met again.
CALM_ROUNDS = 10


class MemoryGuard(threading.Thread):
    """Looks once a second, in a thread of its own, under gevent's patch a greenlet.

    ``used_bytes`` returns the memory in use, ``held`` the number of messages in
    flight, ``running`` that of the tasks in slots, ``ended`` how many messages have left the
    worker; ``ticked`` is called after each look. No process is forked ``unforked``.
    ``lowers`` is off where a slot that is not filled frees nothing: a child of the prefork
    pool keeps what it has, and the pool's own autoscaler ends it. ``collect`` frees what is garbage,
    ``trim`` gives what was freed back to the system.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        limit_bytes: int,
        high: float,
        used_bytes: Callable[[], int],
        held: Callable[[], int],
        running: Callable[[], int],
        ended: Callable[[], int],
        ticked: Callable[[], object],
        unforked: AbstractContextManager[object],
        lowers: bool = True,
        trim: Callable[[], object] | None = None,
        collect: Callable[[], object] = gc.collect,
    ) -> None:
        super().__init__(name="memory-guard", daemon=True)
        self._admission = admission
        self._limit_bytes = limit_bytes
        self._used_bytes = used_bytes
        self._held = held
        self._running = running
        self._ended = ended
        self._ticked = ticked
        self._unforked = unforked
        self._lowers = lowers
        self._trim = trim or trimmer()
        self._collect = collect
        self._ended_collected = 0
        self._soft = SoftLimit(slots_max=admission.slots_max, high=high)
        self._stopped = threading.Event()
        self._refused = 0
        self._calm_rounds = CALM_ROUNDS
        self._passed = False
        self._errors: set[tuple[str, str]] = set()
        #: Called as each round begins.
        self.turned: Callable[[], object] = lambda: None

    def run(self) -> None:
        """Look until ``stop``."""
        while not self._stopped.wait(ROUND_S):
            with self._unforked:
                self.round()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def round(self) -> None:
        """Look once. Does not block; raises nothing: a part that fails is logged, the others go on."""
        self.turned()
        self._try("memory", self._follow_memory)
        self._try("bytes", self._tell_of_bytes)
        self._try("tick", self._ticked)

    def _try(self, part: str, act: Callable[[], object]) -> None:
        """Act; log an error once for each class of it, without its text, which may be anything."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a thread that ended would guard nothing any more
            kind = (part, type(error).__name__)
            if kind not in self._errors:
                self._errors.add(kind)
                log.error("memory_guard_failed part=%s error=%s", *kind)

    def _follow_memory(self) -> None:
        share = self._share()
        above = share >= self._soft.high
        if self._lowers and (above or self._passed):
            self._free(garbage=above)
            share = self._share()
        passed = share >= self._soft.high
        if self._lowers:
            self._admission.cap = self._soft.next(running=self._running(), ended=self._ended(), share=share)
            passed = self._soft.cap < self._admission.slots_max
        if passed != self._passed:
            self._passed = passed
            log.log(
                logging.WARNING if passed else logging.INFO,
                "%s share=%.2f limit_bytes=%d slots=%d",
                "memory_soft_limit_passed" if passed else "memory_soft_limit_kept_again",
                share, self._limit_bytes, self._soft.cap,
            )  # fmt: skip

    def _free(self, *, garbage: bool) -> None:
        """Give back what no task holds, which would count as what the tasks need.

        ``garbage`` is looked for too, which holds the loop up: only where no slot is filled anyway.
        """
        if garbage and (ended := self._ended()) != self._ended_collected:
            # An error that refers to itself holds all that its frames did, and so tasks' bodies, until then.
            self._ended_collected = ended
            self._collect()
        self._trim()  # the allocator keeps much of what was freed

    def _share(self) -> float:
        return self._used_bytes() / self._limit_bytes

    def _tell_of_bytes(self) -> None:
        """Log when the budget of bytes begins to hold messages back, and when it no longer does."""
        refused = self._admission.refused
        before, self._calm_rounds = self._calm_rounds, self._calm_rounds + 1
        if refused != self._refused:
            self._calm_rounds = 0
            if before >= CALM_ROUNDS:
                log.warning(
                    "inflight_bytes_reached bytes_max=%d held=%d", self._admission.bytes_max, self._held()
                )
        elif self._calm_rounds == CALM_ROUNDS:
            log.info("inflight_bytes_below bytes_max=%d", self._admission.bytes_max)
        self._refused = refused


def children() -> Collection[int]:
    """Return the processes that this process's main thread has forked; none where /proc doesn't tell."""
    pid = os.getpid()
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
