"""What a worker and its children take up, read from outside by the worker's pid."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from forwarder.scaling.process_memory import PAGE_BYTES, ProcessMemory, exact
from forwarder.testing.processes import family

#: Of one core, for exact readings of memory: the kernel walks a process's page tables for each.
EXACT_SHARE = 0.03

#: The state in /proc/net/tcp: TCP_ESTABLISHED of the kernel's net/tcp_states.h.
ESTABLISHED = "01"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLook:
    """One process at one moment; bytes and numbers. ``connections`` are established TCP connections."""

    pid: int
    rss_bytes: int
    unique_bytes: int
    proportional_bytes: int
    descriptors: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The worker and its children at one moment; the main process comes first.

    Without any the worker is not there; ``gone`` when an earlier look has seen it.
    """

    processes: tuple[ProcessLook, ...]
    gone: bool = False

    @property
    def children(self) -> tuple[ProcessLook, ...]:
        """Return all processes but the main one."""
        return self.processes[1:]

    def total(self, name: str) -> int:
        """Return the sum of one figure over the processes."""
        return sum(getattr(process, name) for process in self.processes)


class Sampler:
    """Reads the worker's processes, each time it is asked.

    Resident memory is read of every process each time; what is unique and proportional only
    of those whose last reading is the oldest, within ``exact_share`` of a core. Since then a
    process is taken to have grown by pages of its own. A process whose first reading is
    still due counts with what its resident memory has that is no file's, above the main process's.
    """

    def __init__(
        self,
        *,
        pid: int,
        exact_share: float = EXACT_SHARE,
        proc: Path = Path("/proc"),
        now: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        processes: Callable[[int], Iterable[psutil.Process]] = family,
    ) -> None:
        self._pid = pid
        self._exact_share = exact_share
        self._proc = proc
        self._now = now
        self._cpu = cpu
        self._processes = processes
        self._exact: dict[int, tuple[float, ProcessMemory]] = {}  # pid to when, and what
        self._last_s = now() - 1.0
        self._seen = False

    def look(self) -> Look:
        """Return what is taken up now; processes that end meanwhile are left out."""
        pids = [process.pid for process in self._processes(self._pid)]
        resident = {pid: pages for pid in pids if (pages := self._statm(pid)) is not None}
        self._read(resident)
        _, inherited = resident.get(self._pid, (0, 0))
        established = self._established()
        looks = []
        for pid, (rss, anonymous) in resident.items():
            memory = self._estimate(
                pid, rss, anonymous if pid == self._pid else max(0, anonymous - inherited)
            )
            opened = self._opened(pid)
            looks.append(
                ProcessLook(
                    pid=pid,
                    rss_bytes=rss,
                    unique_bytes=memory.unique_bytes,
                    proportional_bytes=memory.proportional_bytes,
                    descriptors=len(opened),
                    connections=sum(name in established for name in opened),
                )
            )
        self._seen = self._seen or bool(looks)
        return Look(processes=tuple(looks), gone=self._seen and not looks)

    def _estimate(self, pid: int, rss: int, own: int) -> ProcessMemory:
        if pid not in self._exact:
            return ProcessMemory(rss, own, own)
        _, then = self._exact[pid]
        unique = min(rss, max(0, then.unique_bytes + rss - then.rss_bytes))
        shared = then.proportional_bytes - then.unique_bytes
        return ProcessMemory(rss, unique, unique + shared)

    def _read(self, resident: Mapping[int, object]) -> None:
        """Read processes exactly, the longest unread first, for as long as the share allows."""
        self._exact = {pid: reading for pid, reading in self._exact.items() if pid in resident}
        began_s, now_s = self._cpu(), self._now()
        budget_s = self._exact_share * (now_s - self._last_s)
        self._last_s = now_s
        for pid in sorted(
            resident, key=lambda pid: self._exact[pid][0] if pid in self._exact else float("-inf")
        ):
            memory = exact(pid, proc=self._proc)
            if memory is not None:
                self._exact[pid] = (now_s, memory)
            if self._cpu() - began_s >= budget_s:
                return

    def _statm(self, pid: int) -> tuple[int, int] | None:
        """Return what is resident and what of that is no file's, in bytes; None for an ended process."""
        try:
            # https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html: size, resident, shared, ...
            _, pages, of_files = map(int, (self._proc / str(pid) / "statm").read_text().split()[:3])
        except (OSError, ValueError):
            return None
        return (pages * PAGE_BYTES, (pages - of_files) * PAGE_BYTES) if pages else None

    def _opened(self, pid: int) -> list[str]:
        """Return what the process's descriptors lead to."""
        opened = []
        with contextlib.suppress(OSError):  # it ends
            for entry in (self._proc / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    opened.append(str(entry.readlink()))
        return opened

    def _established(self) -> set[str]:
        """Return the established TCP connections of this machine, as descriptors name them."""
        found = set()
        for table in ("tcp", "tcp6"):
            try:
                lines = (self._proc / str(self._pid) / "net" / table).read_text().splitlines()[1:]
            except OSError:
                continue
            # https://docs.kernel.org/networking/proc_net_tcp.html: st is the fourth column, inode the tenth
            fields = (line.split() for line in lines)
            found |= {f"socket:[{field[9]}]" for field in fields if field[3] == ESTABLISHED}
        return found
