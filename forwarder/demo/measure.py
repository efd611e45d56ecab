"""What the demo reads off the worker from outside: its memory and its log."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import psutil

from forwarder.testing.processes import family

MIB = 1024 * 1024
CLIENT_BUILT = re.compile(r"\baws_client_built service=firehose\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a worker and its children hold; RSS counts a shared page once for each process."""

    processes: int
    rss_bytes: int
    unique_bytes: int

    def words(self) -> str:
        """Return the figures for the screen."""
        noun = "process" if self.processes == 1 else "processes"
        return (
            f"RSS {self.rss_bytes / MIB:.0f} MiB, unique {self.unique_bytes / MIB:.0f} MiB, "
            f"{self.processes} {noun}"
        )


def memory(pid: int) -> Memory:
    """Return what the process and its descendants hold now; those that end meanwhile are left out."""
    figures = []
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            figures.append(process.memory_full_info())
    return Memory(
        processes=len(figures),
        rss_bytes=sum(figure.rss for figure in figures),
        unique_bytes=sum(figure.uss for figure in figures),
    )


def client_builds(log: str) -> int:
    """Return how often the worker's processes built a Firehose client: a line of the log each."""
    return len(CLIENT_BUILT.findall(log))
