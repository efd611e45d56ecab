"""How much memory a task takes: measured in a process of its own, because memory given back is not seen."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection

#: Seconds after which the measuring process counts as hanging, beside what its requests may take.
SPARE_S = 10.0


def growth_bytes(warm_up: Callable[[], object], work: Callable[[], object], *, within_s: float) -> int | None:
    """Return by how many bytes ``work`` raises the peak of a process that has warmed up.

    Both run in a fork of this process, which must have one thread. None where it
    ended badly or not within the time. Blocks for as long.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_measure, args=(sending, warm_up, work), daemon=True)
    child.start()
    sending.close()
    try:
        found = receiving.recv() if receiving.poll(within_s + SPARE_S) else None
    except EOFError:
        found = None
    finally:
        receiving.close()
        child.kill()
        child.join()
    return found if isinstance(found, int) else None


def _measure(answer: Connection, warm_up: Callable[[], object], work: Callable[[], object]) -> None:
    warm_up()
    before = _peak_bytes()
    work()
    answer.send(_peak_bytes() - before)


def _peak_bytes() -> int:
    """https://man7.org/linux/man-pages/man2/getrusage.2.html: in KiB, and a fork's own begins anew."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
