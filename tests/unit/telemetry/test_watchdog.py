"""What the watchdog writes, into a pipe."""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterator

import pytest

from forwarder.telemetry.watchdog import Watchdog


class Pipe:
    """A log's reader who may be slow."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def lines(self) -> list[str]:
        try:
            return os.read(self.read_end, 100_000).decode().splitlines()
        except BlockingIOError:
            return []

    def fill(self) -> None:
        os.set_blocking(self.write_end, False)
        while select.select([], [self.write_end], [], 0)[1]:
            os.write(self.write_end, b"x" * 65_536)
        os.set_blocking(self.write_end, True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_end)
    os.close(made.write_end)


@pytest.fixture(autouse=True)
def handler(monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """A handler whose lock nobody may take: a stuck greenlet may hold it."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.lock = None
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("forwarder.telemetry.watchdog"), "level", logging.INFO)
    return handler


def test_each_change_is_one_line_and_a_worker_that_lives_is_none(pipe: Pipe) -> None:
    reasons: list[tuple[str, ...]] = [(), ("hub",), ("hub",), ("loop", "hub"), (), ()]
    told = iter(reasons)
    watchdog = Watchdog(reasons=lambda: next(told), output=pipe.write_end)
    for _ in reasons:
        watchdog.look()
    first, second, third = pipe.lines()
    assert first.startswith("ERROR not_live reasons=hub at='watchdog.py:")
    assert " < watchdog.py:" in first
    assert " test_each_change_is_one_line" in first
    assert second.startswith("ERROR not_live reasons=loop,hub at=")
    assert third == "INFO live_again"


def test_a_line_that_would_wait_for_its_reader_is_dropped(pipe: Pipe) -> None:
    pipe.fill()
    Watchdog(reasons=lambda: ("hub",), output=pipe.write_end).look()


def test_a_long_line_is_cut_to_what_one_write_takes(pipe: Pipe) -> None:
    Watchdog(reasons=lambda: ("ä" * 10_000,), output=pipe.write_end).look()
    assert len(os.read(pipe.read_end, 100_000)) <= select.PIPE_BUF
