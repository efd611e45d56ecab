"""How the main process of a prefork pool learns what its children have counted."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from forwarder.telemetry.catalogue import BUCKETS_S
from forwarder.telemetry.metrics import Histogram, ProcessMetrics, Series, Sum

log = logging.getLogger(__name__)

#: Measurements of one histogram that one message carries: with them it fits into a write of the pipe.
SAMPLES_MAX = 100
#: Seconds for room in the pipe, and then for what the last children wrote to be read.
LAST_READ_S = 1.0
READ_BYTES = 65536


class ChildPipe:
    """A pipe from all children to the main process; make it there, before the first fork.

    A child sends the sums since its last message in lines of at most ``PIPE_BUF`` bytes,
    which the kernel writes whole or not at all, so those of several children don't mix
    (https://man7.org/linux/man-pages/man7/pipe.7.html). A thread of the main process
    adds them to ``metrics``. It takes no lock that a child uses, and so needs no gate
    towards the pool's forks. ``alive`` returns the children's pids: what goes on in one
    that was killed goes on no longer.
    """

    def __init__(self, *, metrics: ProcessMetrics, alive: Callable[[], Collection[int]]) -> None:
        self._metrics = metrics
        self._alive = alive
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._levels: dict[int, Counter[Series]] = {}
        self._unreadable = False
        self._reader = threading.Thread(target=self._read, name="child-counts", daemon=True)

    def __repr__(self) -> str:
        return f"<ChildPipe children={list(self._levels)}>"

    def start(self) -> None:
        """Read from now on, in a thread of its own."""
        self._reader.start()

    def send(self, metrics: ProcessMetrics) -> None:
        """Send what a child's table has, and empty it; what the pipe has no room for stays. Never blocks.

        Raises nothing: where the main process is gone, nobody is interested any more.
        """
        sums, histograms = metrics.take()
        parts = [(sum_, _encode_sum(sum_)) for sum_ in sums]
        measured = [(histogram, _encode_histogram(histogram)) for histogram in histograms]
        unsent = {id(part) for part, _ in (*parts, *measured)}
        for line, sent in _lines(os.getpid(), [*parts, *measured]):
            try:
                os.write(self._writes, line)
            except OSError:  # full, or nobody reads
                break
            unsent -= sent
        metrics.add(
            [each for each in sums if id(each) in unsent],
            [each for each in histograms if id(each) in unsent],
        )

    def levels(self) -> Counter[Series]:
        """Return what goes on in the living children, added up. Blocks for a look at /proc."""
        total = Counter[Series]()
        for levels in self._of_the_living().values():
            total.update(levels.copy())  # the reader may add to it meanwhile
        return total

    def stop(self) -> None:
        """Read what the children have written, and no more. Blocks for twice ``LAST_READ_S`` at most."""
        if self._reader.is_alive():
            select.select([], [self._writes], [], LAST_READ_S)
            try:
                os.write(self._writes, b"null\n")
            except BlockingIOError:
                return
            self._reader.join(LAST_READ_S)

    def _of_the_living(self) -> dict[int, Counter[Series]]:
        """Return the levels by pid, and forget those of the dead."""
        known = self._levels.copy()  # before the look: a child that is born after it is in neither
        alive = self._alive()
        for pid in known.keys() - alive:
            self._levels.pop(pid, None)
        return {pid: levels for pid, levels in known.items() if pid in alive}

    def _levels_of(self, pid: int) -> Counter[Series]:
        """Return a child's levels, to be changed; a new child's room is that of the dead."""
        if pid not in self._levels:
            self._of_the_living()
        return self._levels.setdefault(pid, Counter())

    def _read(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._reads, READ_BYTES)).split(b"\n")
            for line in lines:
                if line == b"null":
                    return
                self._take_in(line)

    def _take_in(self, line: bytes) -> None:
        try:
            pid, *parts = json.loads(line)
            sums, histograms = _decode(parts)
            for level in sums:
                if level.series.metric.kind == "gauge":
                    self._levels_of(pid)[level.series] += level.value
            self._metrics.add((each for each in sums if each.series.metric.kind == "counter"), histograms)
        except Exception as error:  # noqa: BLE001 - a thread that ended would count nothing any more
            if not self._unreadable:
                self._unreadable = True
                log.error("child_counts_unreadable error=%s", type(error).__name__)


def _lines(pid: int, parts: list[tuple[Any, str]]) -> Iterator[tuple[bytes, set[int]]]:
    """Yield lines that one write takes, each with the ids of the parts that are in it."""
    head = f"[{pid}"
    line, inside = head, set[int]()
    for part, text in parts:
        if inside and len(line) + len(text) + 3 > select.PIPE_BUF:
            yield f"{line}]\n".encode("ascii"), inside
            line, inside = head, set()
        line += "," + text
        inside.add(id(part))
    if inside:
        yield f"{line}]\n".encode("ascii"), inside


def _encode_sum(part: Sum) -> str:
    return json.dumps([part.series.name, part.series.values, part.value])


def _encode_histogram(part: Histogram) -> str:
    buckets = [[place, number] for place, number in enumerate(part.buckets) if number]
    return json.dumps([part.series.name, part.series.values, buckets, part.sum, list(part.samples)])


def _decode(parts: list[Any]) -> tuple[list[Sum], list[Histogram]]:
    sums, histograms = [], []
    for name, values, *rest in parts:
        series = Series(name, tuple(values))
        if len(rest) == 1:
            sums.append(Sum(series, rest[0]))
        else:
            buckets = [0] * (len(BUCKETS_S) + 1)
            for place, number in rest[0]:
                buckets[place] = number
            histograms.append(Histogram(series, deque(rest[2]), buckets, rest[1]))
    return sums, histograms
