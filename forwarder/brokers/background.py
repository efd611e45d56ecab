"""Work that must not hold up Celery's loop, and what keeps it apart from the pool's forks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType

log = logging.getLogger(__name__)


class ForkGate:
    """Keeps the work of other threads and the pool's forks apart: a fork waits for whoever is inside.

    A child inherits whatever lock a thread holds at that moment, and nobody ever
    releases it there: kombu takes one at each look at a cached property, clients
    and imports have theirs. So a thread that touches what children use as well
    does that inside (``with gate:``, which nests), and sleeps and waits without a
    bound outside. Any number of threads may be inside; who comes while a fork
    waits lets it go first. So a fork waits no longer than the longest piece of
    work that had begun. Before ``guard`` is called nobody waits for anybody.
    """

    def __init__(self) -> None:
        self._guards = False
        self._reset()

    def __repr__(self) -> str:
        return f"<ForkGate inside={len(self._depths)} forking={self._forking}>"

    def __enter__(self) -> None:
        if not self._guards:
            return
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._forking or me in self._depths)
            self._depths[me] = self._depths.get(me, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._guards:
            return
        me = threading.get_ident()
        with self._changed:
            self._depths[me] -= 1
            if not self._depths[me]:
                del self._depths[me]
                self._changed.notify_all()

    def guard(self) -> None:
        """From now on let every fork of this process wait; call it once, while nobody is inside."""
        self._guards = True
        os.register_at_fork(before=self._shut, after_in_parent=self._open, after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._depths: dict[int, int] = {}  # thread to how often it went in
        self._forking = False

    def _shut(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: not self._depths.keys() - {me})

    def _open(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()


def in_background(work: Callable[[], None]) -> None:
    """Run it in a thread, under gevent's patch a greenlet, that does not keep the process alive."""
    threading.Thread(target=work, name="forwarder-background", daemon=True).start()


def insist(
    step: Callable[[], bool], *, gate: ForkGate, pause_s: float, sleep: Callable[[float], None]
) -> None:
    """Take a step again and again until it returns True: each inside the gate, the pauses outside. Blocks."""
    while True:
        with gate:
            if step():
                return
        sleep(pause_s)


def insist_in_background(
    step: Callable[[], bool],
    *,
    gate: ForkGate,
    pause_s: float,
    sleep: Callable[[float], None],
    in_background: Callable[[Callable[[], None]], None] = in_background,
) -> bool:
    """Insist in the background; where no thread is to be had, return what one step of it here returns."""
    try:
        in_background(partial(insist, step, gate=gate, pause_s=pause_s, sleep=sleep))
    except RuntimeError:
        return step()
    return True


def done_within(work: Callable[[], None], seconds: float) -> bool:
    """Run it in the background; return whether it was over in time. What it raises is logged, as a name."""
    over = threading.Event()

    def do() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it was, what comes after it is done all the same
            log.error("background_work_failed error=%s", type(error).__name__)
        finally:
            over.set()

    try:
        in_background(do)
    except RuntimeError:  # no thread is to be had
        do()
    return over.wait(seconds)
