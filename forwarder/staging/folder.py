"""A folder for bodies that are too large for memory, with one bound for all processes that share it.

The folder is its own ledger. A file takes its whole room when it is made, as a
sparse file of that size, so what has been promised is the sum of the sizes that
a listing shows. Nothing else is counted, so a killed process leaves no wrong
number behind: its files go on counting until somebody removes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forwarder.staging.files import WHOLE, StagedFile, take

log = logging.getLogger(__name__)

#: Object (its URL), version (its ETag and length), and a word of its own. Nothing else is ever removed.
NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}-[0-9a-f]{16}")
#: Held for a moment by whoever counts; by whoever is next to get room; by the file that may overrun.
COUNTING, NEXT, OVERRUN = "counting.lock", "next.lock", "overrun.lock"

#: A dead worker's task comes back within its visibility timeout and seconds. What nobody asked for
#: by now was taken by another machine, or is not coming.
LEFTOVER_S_MAX = 3600.0

POLL_S = 0.1

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StagingFull(OSError):
    """There was no room within the time given; ``errno`` is ENOSPC, so the task goes back to the queue."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "no room in the staging folder")


class StagingFolder:
    """Gives out files whose sizes never add up to more than ``bytes_max``.

    Of that ``overrun_bytes`` are kept for one file at a time that has to grow
    before it can end; so files that grow can't wait for each other for ever, and
    no other file may be larger than the rest. ``boot`` is a word that changes
    when the machine starts anew: what the disk kept of a file is not known then.

    Shared by greenlets, threads and processes. ``clock`` tells seconds since the
    epoch. Waiting polls, because processes share no condition; whoever came first
    is served first, within a process, and else nearly so.
    """

    def __init__(
        self,
        *,
        parent: Path,
        bytes_max: int,
        overrun_bytes: int,
        boot: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._path = parent / f"forwarder-staging-{os.geteuid()}"
        self._bytes_max = bytes_max
        self._shared_bytes = bytes_max - overrun_bytes
        self._boot = boot
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._next = threading.Lock()
        self._swept = False

    def __repr__(self) -> str:
        return f"<StagingFolder {self._path} bytes_max={self._bytes_max}>"

    def create(
        self,
        size_bytes: int,
        *,
        until: float,
        url: str = "",
        tag: str | None = None,
        waiting: Callable[[], object] = lambda: None,
    ) -> StagedFile:
        """Return an empty file with so much room, at most what is there beside the overrun.

        Blocks while the folder is full, and calls ``waiting`` before it does.
        Raises StagingFull at ``until`` (on the monotonic clock), OSError for what
        the file system refuses.
        """
        name = self._name(url, tag, size_bytes)
        with self._first_in_line(until, waiting):
            if file := self._create_if_room(name, size_bytes, until):
                return file
            waiting()
            started = self._monotonic()
            log.warning("staging_full wanted_bytes=%d bytes_max=%d", size_bytes, self._bytes_max)
            while (file := self._create_if_room(name, size_bytes, until)) is None:
                self._pause(until)
            log.info("staging_room_found waited_s=%.1f", self._monotonic() - started)
            return file

    def create_empty(self, *, until: float) -> StagedFile:
        """Return a file that grows. Blocks for nobody's room: who asks may hold what others wait for."""
        with self._counting(until):
            return self._new_file(self._name("", None, 0))

    def find(self, *, url: str, tag: str, size_bytes: int, until: float) -> StagedFile | None:
        """Return a dead worker's whole file of this version, now ours; remove those of other versions."""
        wanted = self._name(url, tag, size_bytes)
        found = None
        with self._counting(until):
            for path in self._listed(wanted.split("-")[0]):
                descriptor = _orphaned(path)
                if descriptor is None:
                    continue
                same = path.name.split("-")[1] == wanted.split("-")[1] and _is_whole(descriptor)
                if same and found is None and os.fstat(descriptor).st_size == size_bytes:
                    found = StagedFile(path=path, descriptor=descriptor, size_bytes=size_bytes, whole=True)
                else:
                    _remove(path, descriptor)
        return found

    def grow(self, file: StagedFile, size_bytes: int, *, until: float) -> None:
        """Give a file more room. Blocks while there is none. Raises StagingFull at ``until``, OSError."""
        while True:
            with self._counting(until):
                room = self._has_room(size_bytes - file.size_bytes)
                if room or file.overrun(self._path / OVERRUN):
                    file.resize(size_bytes)
                    return
            self._pause(until)

    def _create_if_room(self, name: str, size_bytes: int, until: float) -> StagedFile | None:
        with self._counting(until):
            if not self._has_room(size_bytes):
                return None
            file = self._new_file(name)
            try:
                file.resize(size_bytes)
            except BaseException:
                file.remove()
                raise
            return file

    def _new_file(self, name: str) -> StagedFile:
        path = self._path / name
        if (descriptor := take(path)) is None:
            raise FileExistsError(errno.EEXIST, "a name that nobody else should have")
        return StagedFile(path=path, descriptor=descriptor, size_bytes=0)

    def _has_room(self, more_bytes: int) -> bool:
        """Return whether so much more fits, once dead workers' files have made way, the oldest first."""
        if not self._swept:
            self._sweep()
            self._swept = True
        over = sum(map(_size, self._listed())) + more_bytes - self._shared_bytes
        if over <= 0:
            return True
        for path in sorted(self._listed(), key=_changed_at):
            if over > 0 and (descriptor := _orphaned(path)) is not None:
                over -= os.fstat(descriptor).st_size
                _remove(path, descriptor)
        return over <= 0

    def _sweep(self) -> None:
        """Remove what dead workers left and nobody can use, or nobody asked for."""
        for path in self._listed():
            if (descriptor := _orphaned(path)) is None:
                continue
            if self._clock() - _changed_at(path) > LEFTOVER_S_MAX or not _is_whole(descriptor):
                _remove(path, descriptor)
            else:
                os.close(descriptor)

    def _listed(self, beginning: str = "") -> list[Path]:
        found = self._path.iterdir()
        return [path for path in found if NAME.fullmatch(path.name) and path.name.startswith(beginning)]

    def _name(self, url: str, tag: str | None, size_bytes: int) -> str:
        """Return a new name. Without a tag nobody finds the file again."""
        own = os.urandom(8).hex()
        version = own if tag is None else tag
        return f"{_hash(url)[:16]}-{_hash(f'{self._boot} {size_bytes} {version}')[:32]}-{own}"

    @contextmanager
    def _first_in_line(self, until: float, waiting: Callable[[], object]) -> Iterator[None]:
        """Wait for whoever came before: a large file would never fit beside small ones that keep coming."""
        if not self._next.acquire(blocking=False):
            waiting()
            if not self._next.acquire(timeout=max(0.0, until - self._monotonic())):
                raise StagingFull
        try:
            with self._locked(NEXT, until, waiting):
                yield
        finally:
            self._next.release()

    def _counting(self, until: float) -> contextlib.AbstractContextManager[None]:
        return self._locked(COUNTING, until)

    @contextmanager
    def _locked(
        self, name: str, until: float, waiting: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        self._make()
        # Asked for again and again instead of waited for: a process that was stopped while
        # it held the lock must not stop every greenlet of this one.
        while (descriptor := take(self._path / name)) is None:
            waiting()
            self._pause(until)
        try:
            yield
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        """Make the folder, or see that it is ours: whoever owns it could swap what is sent."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "the staging folder belongs to another user")

    def _pause(self, until: float) -> None:
        left_s = until - self._monotonic()
        if left_s <= 0:
            raise StagingFull
        self._sleep(min(POLL_S, left_s))


def boot_id() -> str:
    """Return a word that changes when the machine starts anew, a random one where none can be read."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return os.urandom(8).hex()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _orphaned(path: Path) -> int | None:
    """Return the descriptor of a file that nobody uses, now locked by us; None for all others."""
    try:
        return take(path, create=False)
    except FileNotFoundError:
        return None


def _is_whole(descriptor: int) -> bool:
    return stat.S_IMODE(os.fstat(descriptor).st_mode) == WHOLE


def _remove(path: Path, descriptor: int) -> None:
    try:
        path.unlink(missing_ok=True)
        log.info("staging_leftover_removed bytes=%d", os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # its task has just ended
        return 0


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
