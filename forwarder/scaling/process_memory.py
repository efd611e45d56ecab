"""What the worker and its children take up, read often where that is cheap and seldom where it is not."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: Of one core, for the exact readings: the kernel walks a process's page tables for each (4 ms
#: for one of 80 MiB on a slow core), while the cheap one takes 2 microseconds.
EXACT_SHARE = 0.0003

#: https://docs.kernel.org/filesystems/proc.html, smaps_rollup: Rss and Pss, and what is private.
_UNIQUE = (b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process: resident; its alone; and with its part of what it shares. In bytes."""

    rss_bytes: int
    unique_bytes: int
    proportional_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker and its children; the totals are sums over the processes. In bytes."""

    rss_bytes: int
    unique_bytes: int
    proportional_bytes: int
    by_pid: Mapping[int, ProcessMemory] = field(default_factory=dict)


class Memory:
    """Samples this process and its children from /proc.

    Each sample reads every process's resident size from ``statm``, whose files stay open.
    What is unique and proportional is in ``smaps_rollup``, and that is read of one process
    at a time, the one whose last reading is the oldest, and no more often than costs
    ``EXACT_SHARE`` of a core. Since its last reading a process is taken to have grown by
    pages of its own; of one that was not read yet, what it has more than its parent is its own.

    ``children`` tells the children's pids. The clocks are in seconds.
    """

    def __init__(
        self,
        *,
        pid: int | None = None,
        children: Callable[[], Collection[int]] = tuple,
        proc: Path = Path("/proc"),
        now: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._children = children
        self._proc = proc
        self._now = now
        self._cpu = cpu
        self._files: dict[int, int] = {}  # pid to descriptor of its statm
        self._exact: dict[int, tuple[float, ProcessMemory]] = {}  # pid to when, and what
        self._next_exact_s = now()

    def sample(self, *, exactly: Iterable[int] = ()) -> Sample:
        """Return what is taken up now; processes that have ended are left out. Does not block.

        The pids in ``exactly`` are read exactly, whatever that costs.
        """
        pids = [self._pid, *self._children()]
        self._forget(set(pids))
        resident = {pid: pages for pid in pids if (pages := self._statm(pid)) is not None}
        for pid in exactly:
            self._read_exactly(pid)
        if resident and self._now() >= self._next_exact_s:
            self._read_oldest(resident)
        _, inherited = resident.get(self._pid, (0, 0))
        by_pid = {
            pid: self._estimate(pid, rss, anonymous if pid == self._pid else max(0, anonymous - inherited))
            for pid, (rss, anonymous) in resident.items()
        }
        return Sample(
            rss_bytes=sum(memory.rss_bytes for memory in by_pid.values()),
            unique_bytes=sum(memory.unique_bytes for memory in by_pid.values()),
            proportional_bytes=sum(memory.proportional_bytes for memory in by_pid.values()),
            by_pid=by_pid,
        )

    def close(self) -> None:
        """Close the files that are kept open."""
        self._forget(set())

    def _estimate(self, pid: int, rss: int, own: int) -> ProcessMemory:
        if pid not in self._exact:
            return ProcessMemory(rss, own, own)
        _, then = self._exact[pid]
        grown = rss - then.rss_bytes
        unique = min(rss, max(0, then.unique_bytes + grown))
        return ProcessMemory(rss, unique, max(unique, then.proportional_bytes + grown))

    def _read_oldest(self, resident: Collection[int]) -> None:
        oldest = min(resident, key=lambda pid: self._exact[pid][0] if pid in self._exact else float("-inf"))
        began_s = self._cpu()
        self._read_exactly(oldest)
        self._next_exact_s = self._now() + (self._cpu() - began_s) / EXACT_SHARE

    def _read_exactly(self, pid: int) -> None:
        memory = exact(pid, proc=self._proc)
        if memory is not None:
            self._exact[pid] = (self._now(), memory)

    def _statm(self, pid: int) -> tuple[int, int] | None:
        """Return what is resident and what of that is no file's, in bytes; None for an ended process."""
        try:
            descriptor = self._files.get(pid)
            if descriptor is None:
                descriptor = os.open(self._proc / str(pid) / "statm", os.O_RDONLY | os.O_CLOEXEC)
                self._files[pid] = descriptor
            # https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html: size, resident, shared, ...
            _, resident, of_files = map(int, os.pread(descriptor, 128, 0).split()[:3])
            return resident * PAGE_BYTES, (resident - of_files) * PAGE_BYTES
        except (OSError, ValueError):  # ended; a process that nobody waited for yet shows nothing
            return None

    def _forget(self, alive: Collection[int]) -> None:
        for pid in self._files.keys() - alive:
            with contextlib.suppress(OSError):
                os.close(self._files.pop(pid))
            self._exact.pop(pid, None)


def exact(pid: int, *, proc: Path = Path("/proc")) -> ProcessMemory | None:
    """Return the process's memory from smaps_rollup, None when it has ended or may not be read.

    Costs the kernel a walk over its page tables, milliseconds for a large one.
    """
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_bytes().splitlines()
    except OSError:
        return None
    total = partial(_sum_kb, [line.split() for line in lines])
    rss = total((b"Rss:",))
    return ProcessMemory(rss, total(_UNIQUE), total((b"Pss:",))) if rss else None


def _sum_kb(lines: Iterable[list[bytes]], names: Collection[bytes]) -> int:
    return sum(int(line[1]) * 1024 for line in lines if line[0] in names)
