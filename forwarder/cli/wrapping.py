"""Lines as wide as the terminal: a name is never broken, and what no terminal shows is not wrapped."""

from __future__ import annotations

import os
import sys
import textwrap


def terminal_width() -> int | None:
    """Return the columns of the terminal that standard output is, None where it is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):  # a file, a pipe, or no file at all
        return None


def wrapped(line: str, width: int | None, *, indent: int = 0) -> list[str]:
    """Return a line as lines of ``width`` at most, the further ones indented; as it is without a width.

    Spaces within a line stay. What has no space and is longer, a URL, is not broken.
    """
    if width is None or len(line) <= width:
        return [line]
    own = len(line) - len(line.lstrip())
    return textwrap.wrap(
        line.lstrip(),
        max(width, indent + 20),
        initial_indent=" " * own,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
