"""What the demo shows: aligned lines, and a progress bar where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LABEL_WIDTH = 10


class Screen:
    """Writes to standard output: colours and a bar on a terminal, plain lines otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._console.print(f"\n{text}", style="bold", markup=False, highlight=False)

    def line(self, label: str, text: str) -> None:
        """Write one fact; it is cut, not wrapped, where the terminal is too narrow."""
        self.plain(f"  {label:<{LABEL_WIDTH}}  {text}", crop=self._console.is_terminal)

    def plain(self, text: str, *, style: str | None = None, crop: bool = False) -> None:
        """Write the text as it is."""
        if crop:
            self._console.print(
                text, style=style, markup=False, highlight=False, no_wrap=True, overflow="ellipsis"
            )
        else:
            self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Follow ``total`` steps; the block calls what it is given once a step."""
        if not self._console.is_terminal:
            done = 0

            def count() -> None:
                nonlocal done
                done += 1

            yield count
            self.line(label, f"{done}/{total}")
            return
        columns = (
            TextColumn(f"  {label:<{LABEL_WIDTH}} "),
            BarColumn(bar_width=34),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(label, total=total)
            yield lambda: progress.advance(bar)
