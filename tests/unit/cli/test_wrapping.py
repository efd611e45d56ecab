"""Lines for a terminal: as wide as it is, and names in one piece."""

from __future__ import annotations

import os
import sys

import pytest

from forwarder.cli.wrapping import terminal_width, wrapped

LINE = "  set --broker-url (FORWARDER_BROKER_URL) to a-name-of-some-length"


def test_a_wide_line_is_continued_with_an_indent_and_its_names_stay_whole() -> None:
    lines = wrapped(LINE, 30, indent=4)
    assert lines == ["  set --broker-url", "    (FORWARDER_BROKER_URL) to", "    a-name-of-some-length"]


@pytest.mark.parametrize("width", [None, len(LINE)])
def test_what_fits_or_is_shown_nowhere_is_left_as_it_is(width: int | None) -> None:
    assert wrapped(LINE, width) == [LINE]


def test_what_has_no_space_is_not_broken() -> None:
    url = "redis://" + "h" * 50
    assert wrapped(f"at {url}", 30, indent=2) == ["at", f"  {url}"]


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert terminal_width() is None
