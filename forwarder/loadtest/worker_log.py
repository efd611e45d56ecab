"""What the worker's log tells a load test: its decisions on its size, and children that were killed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

DECISIONS = ("grow", "hold", "shrink", "block")

_DECISION = re.compile(rb" autoscale action=(grow|hold|shrink|block) ")
_SLOTS = re.compile(rb" slots_changed slots=(\d+) before=(\d+) ")
#: Celery's own words, on both ends of a child that a signal has ended.
_KILLED = re.compile(rb" exited with 'signal 9 \(SIGKILL\)'")
_PRESSURE = re.compile(rb" (memory_soft_limit_passed|inflight_bytes_reached) ")


class WorkerLog:
    """Counts what is told in a worker's log file, reading on where it stopped.

    The prefork autoscaler writes a line when its decision is another than before, not
    one for each second that it stays with it. Under gevent slots that open count as
    grow, slots that close as shrink. ``pressure`` is how often memory or the budget of
    bytes began to hold tasks back.
    """

    def __init__(self, path: Path | None, *, from_end: bool = False) -> None:
        self._path = path
        self._place = path.stat().st_size if path is not None and from_end else 0
        self._rest = b""
        self._counts: Counter[str] = Counter()

    def read(self) -> Mapping[str, int]:
        """Read what was added and return all counts so far. Without a file they stay 0."""
        if self._path is not None:
            try:
                with self._path.open("rb") as file:
                    file.seek(self._place)
                    added = file.read()
            except FileNotFoundError:  # the worker's folder is gone: it was stopped
                added = b""
            self._place += len(added)
            *lines, self._rest = (self._rest + added).split(b"\n")
            for line in lines:
                self._count(line)
        names = (*DECISIONS, "kills", "pressure")
        return {name: self._counts[name] for name in names}

    def _count(self, line: bytes) -> None:
        if decision := _DECISION.search(line):
            self._counts[decision[1].decode()] += 1
        elif slots := _SLOTS.search(line):
            self._counts["grow" if int(slots[1]) > int(slots[2]) else "shrink"] += 1
        elif _KILLED.search(line):
            self._counts["kills"] += 1
        elif _PRESSURE.search(line):
            self._counts["pressure"] += 1
