"""One object that is read piece by piece, over as many connections as that takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

from forwarder.backoff import Backoff
from forwarder.forwarding.errors import Expired, InputUnavailable, InvalidPayload

PIECE_BYTES = 64 * 1024

#: Connections that may break off in one download, each after the service's own tries.
BROKEN_MAX = 5
BACKOFF = Backoff(base_s=0.5, max_s=8.0)


class Remote(Protocol):
    """An object that has been opened.

    ``size_bytes`` is what follows, None where nobody says. ``tag`` changes
    whenever a byte does, None where there is no such word.
    """

    @property
    def size_bytes(self) -> int | None: ...
    @property
    def tag(self) -> str | None: ...

    def read(self, bytes_max: int) -> bytes:
        """Return the next bytes, none at the end. Blocks. Raises InputUnavailable."""

    def close(self) -> None:
        """Close the connection, read to its end or not. Never raises."""


class Source(Protocol):
    """Where objects of one kind of URL are."""

    def open(self, url: str, *, after_bytes: int, tag: str | None) -> Remote:
        """Open an object, behind what was read of it; of no other version than the tag's.

        Blocks until the service has answered. Raises InvalidPayload for a URL that
        can't be used, InputUnavailable, which says whether to come ``again``.
        """


class Download:
    """Reads one object within a bound and until a moment on the monotonic clock; close it in any case.

    A connection that breaks off is followed by another one, behind what was read
    already, where the object's tag shows that it is still the same.
    """

    def __init__(
        self,
        *,
        source: Source,
        url: str,
        bytes_max: int,
        until: float,
        expires: bool,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.size_bytes: int | None = None
        self.tag: str | None = None
        self.read_bytes = 0
        self._source = source
        self._url = url
        self._bytes_max = bytes_max
        self.until = until
        self.expires = expires
        self._monotonic = monotonic
        self._sleep = sleep
        self._uniform = uniform
        self._remote: Remote | None = None
        self._broken = 0

    def open(self) -> None:
        """Learn the object's size and tag. Blocks. Raises as ``read`` does."""
        self._patiently(lambda remote: b"")

    def read(self) -> bytes:
        """Return the next piece, nothing at the end.

        Blocks, for one silence of the service beyond the end of its time. Raises
        InvalidPayload for an object that passes the bound, InputUnavailable for one
        that can't be read in time or at all, Expired where the task's time is up.
        """
        piece = self._patiently(lambda remote: remote.read(PIECE_BYTES))
        self.read_bytes += len(piece)
        if self.read_bytes > self._bytes_max:
            raise self._too_large()
        if not piece and self.size_bytes not in (None, self.read_bytes):
            raise InputUnavailable("the object that 'url' names broke off")
        # A service and a disk that are always ready would never let another greenlet run.
        self._sleep(0)
        return piece

    def let_go(self) -> None:
        """Close the connection for now; without a tag what was read counts for nothing from here on."""
        self.close()
        if self.tag is None:
            self.read_bytes = 0

    def close(self) -> None:
        """Close the connection. May be called again."""
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()

    def too_late(self) -> Expired | InputUnavailable:
        """Return what to raise when the time is up."""
        if self.expires:
            return Expired("the task expired while its input was read")
        return InputUnavailable("the object that 'url' names was not read in time")

    def _patiently(self, use: Callable[[Remote], bytes]) -> bytes:
        while True:
            if self._monotonic() >= self.until:
                raise self.too_late()
            try:
                return use(self._connected())
            except InputUnavailable as error:
                self.close()
                self._broken += 1
                if not error.again or not self._resumable or self._broken > BROKEN_MAX:
                    raise
            wait_s = BACKOFF.wait_s(self._broken, self._uniform)
            self._sleep(min(wait_s, max(0.0, self.until - self._monotonic())))

    @property
    def _resumable(self) -> bool:
        if self.read_bytes == 0:
            return True
        # What fails behind the last byte is a checksum.
        return self.tag is not None and self.read_bytes != self.size_bytes

    def _connected(self) -> Remote:
        if self._remote is None:
            remote = self._source.open(self._url, after_bytes=self.read_bytes, tag=self.tag)
            self._remote = remote
            if self.read_bytes == 0:
                self.size_bytes, self.tag = remote.size_bytes, remote.tag
            if self.size_bytes is not None and self.size_bytes > self._bytes_max:
                raise self._too_large()
        return self._remote

    def _too_large(self) -> InvalidPayload:
        return InvalidPayload(f"the object that 'url' names has more than {self._bytes_max} bytes")
