"""Bodies by reference: small ones by way of memory, large ones by way of the disk."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from forwarder.forwarding.errors import InputUnavailable, InvalidPayload
from forwarder.forwarding.ports import StagedBody
from forwarder.staging.download import Download, Source
from forwarder.staging.files import StagedFile
from forwarder.staging.folder import StagingFolder, StagingFull
from forwarder.staging.spool import AnswerSpool
from forwarder.staging.threshold import Threshold

log = logging.getLogger(__name__)


class Staging:
    """Fetches what payloads refer to and makes room for answers that go somewhere else.

    ``sources`` has the allowed schemes. Objects above ``threshold`` go by way
    of ``folder``; more than ``input_bytes_max`` is refused, and a download ends
    ``timeout_s`` after it began, the wait for room included. An answer may have
    ``answer_bytes_max``, which the folder must keep for one at least.
    """

    def __init__(
        self,
        *,
        folder: StagingFolder,
        sources: Mapping[str, Source],
        threshold: Threshold,
        input_bytes_max: int,
        answer_bytes_max: int,
        timeout_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._folder = folder
        self._sources = sources
        self._threshold = threshold
        self._input_bytes_max = input_bytes_max
        self._answer_bytes_max = answer_bytes_max
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._uniform = uniform

    def __repr__(self) -> str:
        return f"<Staging {self._folder!r} schemes={','.join(self._sources)}>"

    @contextmanager
    def fetch(self, url: str, *, within_s: float | None = None) -> Iterator[bytes | StagedBody]:
        """Give what the URL names, until the block ends; then its file is removed.

        Blocks for the download and, while the folder is full, for room. Raises
        InvalidPayload for a URL that is not allowed and an object past the bound,
        InputUnavailable for one that can't be read, Expired after ``within_s``;
        StagingFull or another OSError where the worker lacks something.
        """
        source = self._sources.get(url.partition("://")[0].lower())
        if source is None:
            allowed = " or ".join(f"{scheme}://" for scheme in sorted(self._sources)) or "not used at all"
            raise InvalidPayload(f"payload key 'url' must be {allowed} here")
        expires = within_s is not None and within_s < self._timeout_s
        download = Download(
            source=source,
            url=url,
            bytes_max=self._input_bytes_max,
            until=self._monotonic() + (within_s if within_s is not None and expires else self._timeout_s),
            expires=expires,
            monotonic=self._monotonic,
            sleep=self._sleep,
            uniform=self._uniform,
        )
        with contextlib.closing(download), contextlib.ExitStack() as held:
            download.open()
            above_bytes = self._threshold.bytes  # once: it may be another before all is read
            head = _head(download, above_bytes)
            body: bytes | StagedBody
            if _is_large(download, head, above_bytes):
                file = self._file(download, url)
                held.callback(file.remove)
                if file.whole:
                    log.info("staging_leftover_used bytes=%d", file.size_bytes)
                else:
                    self._fill(file, download, head)
                body = file.body
                self._threshold.saw(file.size_bytes)
            else:
                body = bytes(head)
                self._threshold.saw(len(body))
            head.clear()
            download.close()
            yield body

    @contextmanager
    def spool(self) -> Iterator[AnswerSpool]:
        """Give what takes one answer, until the block ends; then its file is removed."""
        spool = AnswerSpool(
            folder=self._folder,
            above_bytes=self._threshold.bytes,
            bytes_max=self._answer_bytes_max,
            monotonic=self._monotonic,
            sleep=self._sleep,
        )
        with contextlib.closing(spool):
            yield spool

    def _file(self, download: Download, url: str) -> StagedFile:
        """Return a dead worker's file of the object, or an empty one with room for it."""
        size_bytes, tag, until = download.size_bytes, download.tag, download.until
        try:
            if size_bytes is not None and tag is not None:
                leftover = self._folder.find(url=url, tag=tag, size_bytes=size_bytes, until=until)
                if leftover is not None:
                    return leftover
            room_bytes = self._input_bytes_max if size_bytes is None else size_bytes
            return self._folder.create(room_bytes, until=until, url=url, tag=tag, waiting=download.let_go)
        except StagingFull:
            if download.expires:
                raise download.too_late() from None
            raise

    def _fill(self, file: StagedFile, download: Download, head: bytearray) -> None:
        if download.read_bytes:  # else the connection was let go, and it all begins anew
            file.write(head)
        while piece := download.read():
            if file.written_bytes + len(piece) > file.size_bytes:
                raise InputUnavailable("the object that 'url' names changed while it was read")
            file.write(piece)
        file.finish()


def _head(download: Download, above_bytes: int) -> bytearray:
    """Read the object as far as memory may hold it; nothing of one that is known to be larger."""
    head = bytearray()
    while not _is_large(download, head, above_bytes):
        if not (piece := download.read()):
            break
        head += piece
    return head


def _is_large(download: Download, head: bytearray, above_bytes: int) -> bool:
    known = len(head) if download.size_bytes is None else download.size_bytes
    return known > above_bytes
