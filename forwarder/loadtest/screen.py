"""What a load test shows while it runs: a bar with the worker's state under it, or a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from forwarder.loadtest.figures import Sample
from forwarder.loadtest.worker_log import DECISIONS

#: Lines for a whole run where nobody watches.
LINES = 10
#: Columns of a terminal from which on there is room for the memory beside the bar.
WIDE = 100
BAR_WIDTH = 30
BAR_WIDTH_NARROW = 12


class Screen:
    """Writes to a console: a live bar on a terminal, plain lines otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._tasks = 0
        self._told = -1

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def following(self, tasks: int) -> Iterator[None]:
        """Show a bar for so many tasks for as long as the block lasts."""
        self._tasks, self._told = tasks, -1
        if not self._console.is_terminal:
            yield
            return
        # What doesn't fit is cut off the state: without these the count is what goes first.
        columns = (
            BarColumn(bar_width=BAR_WIDTH if self._wide else BAR_WIDTH_NARROW),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
        )
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        state = TextColumn("{task.fields[state]}", markup=False, table_column=rest)
        with Progress(*columns, state, console=self._console, expand=True) as self._progress:
            self._bar = self._progress.add_task("", total=tasks, state="")
            yield
        self._progress = self._bar = None

    @property
    def _wide(self) -> bool:
        return self._console.width >= WIDE

    def update(self, sample: Sample) -> None:
        """Show the latest sample."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=sample.done, state=words(sample, wide=self._wide))
            return
        step = sample.done * LINES // self._tasks
        if step > self._told:
            self._told = step
            self.say(f"{sample.at_s:6.0f} s  {sample.done}/{self._tasks}  {words(sample)}".rstrip())


def words(sample: Sample, *, wide: bool = True) -> str:
    """Return the worker's state in a few words; nothing of a worker that can't be seen.

    Its memory only where there is room: the report has it.
    """
    parts = []
    if sample.processes is not None and sample.rss_mb is not None and sample.unique_mb is not None:
        children = sample.processes - 1
        parts.append(f"{children} child{'' if children == 1 else 'ren'}")
        if wide:
            parts.append(f"RSS {sample.rss_mb:.0f} MB, unique {sample.unique_mb:.0f} MB")
    if sample.gone:
        parts.append("the worker is gone")
    if sample.in_flight is not None:
        parts.append(f"{sample.in_flight} in flight")
    if sample.events is not None:
        parts += [f"{name} {sample.events[name]}" for name in (*DECISIONS, "kills") if sample.events[name]]
    return "  ".join(parts)
