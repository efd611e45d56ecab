"""The body of one answer on its way from the inference server to its destination."""

from __future__ import annotations

import time
from collections.abc import Callable

from forwarder.forwarding.ports import StagedBody
from forwarder.staging.files import StagedFile
from forwarder.staging.folder import StagingFolder, StagingFull

#: Room is taken in such steps, because an answer need not say how long it is.
STEP_BYTES = 8 * 1024 * 1024


class NotStaged(Exception):
    """An answer could not be written to the staging folder; the cause says why.

    No OSError: to the inference client that would be a connection that broke, and
    the answer be paid for again at once.
    """


class AnswerSpool:
    """Writes an answer into a file that grows as the answer does. Close it in any case.

    An answer up to ``above_bytes`` needs no file; more than ``bytes_max`` the
    inference client refuses.
    """

    def __init__(
        self,
        *,
        folder: StagingFolder,
        above_bytes: int,
        bytes_max: int,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.above_bytes = above_bytes
        self.bytes_max = bytes_max
        self._folder = folder
        self._monotonic = monotonic
        self._sleep = sleep
        self._file: StagedFile | None = None

    def begin(self) -> None:
        """Forget what an earlier answer left; its room is used again."""
        if self._file is not None:
            self._file.rewind()

    def write(self, data: bytes | bytearray, *, within_s: float) -> None:
        """Add bytes. Blocks while the folder is full.

        Raises TimeoutError after ``within_s`` seconds, NotStaged when the file
        system refuses.
        """
        until = self._monotonic() + within_s
        try:
            file = self._file = self._file or self._folder.create_empty(until=until)
            needed = file.written_bytes + len(data)
            if needed > file.size_bytes:
                room = min(self.bytes_max, file.size_bytes + STEP_BYTES)
                self._folder.grow(file, max(needed, room), until=until)
            file.write(data)
        except StagingFull:
            raise TimeoutError("the staging folder stayed full") from None
        except OSError as error:
            raise NotStaged("the answer could not be staged") from error
        # A server and a disk that are always ready would never let another greenlet run.
        self._sleep(0)

    def finish(self) -> StagedBody:
        """Return what was written; the room that was not needed is given back."""
        if self._file is None:
            raise ValueError("nothing was written")
        self._file.resize(self._file.written_bytes)
        return self._file.body

    def close(self) -> None:
        """Remove the file. Never blocks, never raises."""
        if self._file is not None:
            self._file.remove()
