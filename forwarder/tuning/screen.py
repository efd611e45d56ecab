"""A bar over the requests, where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def following(console: Console, requests_max: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; the block calls what it is given with the concurrency of each request."""
    if not console.is_terminal:
        yield lambda concurrency: None
        return
    columns = (
        TextColumn("  {task.fields[at]:>4} at a time"),
        BarColumn(bar_width=34),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=requests_max, at=1)
        yield lambda concurrency: progress.update(bar, advance=1, at=concurrency)
