"""What the worker's log tells a load test: its decisions on its size, and children that were killed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DECISIONS = ("grow", "hold", "shrink", "block")

_FIELD = re.compile(r" (\w+)=(\S+)")
#: Celery's own words, on both ends of a child that a signal has ended.
_KILLED = " exited with 'signal 9 (SIGKILL)'"
_PRESSURE = ("memory_soft_limit_passed", "inflight_bytes_reached")


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
        message, fields = _told(line.decode(errors="replace"))
        event, _, rest = message.partition(" ")
        if event == "autoscale" and fields.get("action") in DECISIONS:
            self._counts[fields["action"]] += 1
        elif event == "slots_changed":
            self._counts["grow" if int(fields["slots"]) > int(fields["before"]) else "shrink"] += 1
        elif rest.endswith(_KILLED):
            self._counts["kills"] += 1
        elif event in _PRESSURE:
            self._counts["pressure"] += 1


def _told(line: str) -> tuple[str, Mapping[str, Any]]:
    """Return a line's message, and the fields in it: of either ``--log-format``."""
    if line.startswith("{"):
        try:
            told = json.loads(line)
            return str(told["event"]), told
        except (ValueError, KeyError):  # somebody else writes to the same stream
            return "", {}
    message = line.partition(": ")[2]
    return message, dict(_FIELD.findall(message))
