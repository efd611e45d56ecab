"""Objects that are read without a network: what they hold, how they break off, what was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from forwarder.forwarding.errors import InputUnavailable


@dataclass
class FakeSource:
    """One object; each of ``breaks`` ends a connection after so many bytes, or before the first."""

    content: bytes = b""
    tag: str | None = '"1"'
    says_size: bool = True
    breaks: list[int | InputUnavailable] = field(default_factory=list)
    opened: list[tuple[str, int, str | None]] = field(default_factory=list)
    connections: int = 0
    on_read: Callable[[], object] = lambda: None

    def open(self, url: str, *, after_bytes: int, tag: str | None) -> FakeRemote:
        self.opened.append((url, after_bytes, tag))
        breaks_after = self.breaks.pop(0) if self.breaks else None
        if isinstance(breaks_after, InputUnavailable):
            raise breaks_after
        if tag is not None and tag != self.tag:
            raise InputUnavailable("changed", "PreconditionFailed")
        self.connections += 1
        return FakeRemote(self, self.content[after_bytes:], breaks_after)


class FakeRemote:
    def __init__(self, source: FakeSource, content: bytes, breaks_after: int | None) -> None:
        self.size_bytes = len(content) if source.says_size else None
        self.tag = source.tag
        self._source = source
        self._left = content
        self._breaks_after = breaks_after
        self._open = True

    def read(self, bytes_max: int) -> bytes:
        self._source.on_read()
        if self._breaks_after is not None:
            bytes_max = min(bytes_max, self._breaks_after)
            if bytes_max == 0:
                raise InputUnavailable("broke off", again=True)
            self._breaks_after -= bytes_max
        piece, self._left = self._left[:bytes_max], self._left[bytes_max:]
        return piece

    def close(self) -> None:
        if self._open:
            self._open = False
            self._source.connections -= 1
