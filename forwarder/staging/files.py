"""One file of the staging folder, and the locks that tell who uses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from forwarder.forwarding.ports import StagedBody

#: Permissions while it is being filled, and once it is. A name that changes could be missed in a listing.
FILLING, WHOLE = 0o600, 0o400


class StagedFile:
    """A file that this process writes or reads, locked for as long as it does.

    The lock is the kernel's and ends with the process, however that ends: a file
    without one is a dead worker's. The file's size is what it may grow to, so
    that the sizes in the folder add up to what has been promised.
    """

    def __init__(self, *, path: Path, descriptor: int, size_bytes: int, whole: bool = False) -> None:
        self.whole = whole
        self._path = path
        self._descriptor: int | None = descriptor
        self._overrun: int | None = None
        self.size_bytes = size_bytes
        self.written_bytes = size_bytes if whole else 0

    def __repr__(self) -> str:
        return f"<StagedFile {self.written_bytes} of {self.size_bytes} bytes>"

    @property
    def body(self) -> StagedBody:
        """Return what the file holds, for whoever sends it on."""
        return StagedBody(path=self._path, size_bytes=self.size_bytes)

    def write(self, data: bytes | bytearray) -> None:
        """Add bytes. Blocks for the disk. Raises OSError, which may say that it is full."""
        left = memoryview(data)
        while left:
            written = os.write(self._open, left)
            self.written_bytes += written
            left = left[written:]

    def rewind(self) -> None:
        """Begin anew; the room stays."""
        os.lseek(self._open, 0, os.SEEK_SET)
        self.written_bytes = 0

    def resize(self, size_bytes: int) -> None:
        """Take more room or give some back; the folder's lock is held where it is more."""
        os.ftruncate(self._open, size_bytes)
        self.size_bytes = size_bytes

    def finish(self) -> None:
        """Give back the room that was not needed, and say that the file is whole."""
        self.resize(self.written_bytes)
        os.fchmod(self._open, WHOLE)
        self.whole = True

    def overrun(self, lock: Path) -> bool:
        """Return whether this file is the one that may use the room that is kept for one."""
        if self._overrun is None:
            self._overrun = take(lock)
        return self._overrun is not None

    def remove(self) -> None:
        """Remove the file and let its room go. May be called again. Never blocks, never raises."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(descriptor)
        if self._overrun is not None:
            os.close(self._overrun)

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError("the staged file was removed")
        return self._descriptor


def take(path: Path, *, create: bool = True) -> int | None:
    """Open a file and lock it; return its descriptor, None when somebody else has it, or has just removed it.

    Not a lock of POSIX: that belongs to the process, and its greenlets would share
    it. Does not block. Raises OSError.
    """
    access = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW, FILLING)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    if os.fstat(descriptor).st_nlink == 0:  # whoever had it ended its task between our open and our lock
        os.close(descriptor)
        return None
    return descriptor
