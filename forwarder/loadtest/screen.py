"""What a load test shows while it runs: a bar with the worker's state under it, or a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from forwarder.loadtest.figures import Sample
from forwarder.loadtest.worker_log import DECISIONS

#: Lines for a whole run where nobody watches.
LINES = 10


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
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
        state = TextColumn("{task.fields[state]}", markup=False)
        with Progress(*columns, state, console=self._console) as self._progress:
            self._bar = self._progress.add_task("", total=tasks, state="")
            yield
        self._progress = self._bar = None

    def update(self, sample: Sample) -> None:
        """Show the latest sample."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=sample.done, state=words(sample))
            return
        step = sample.done * LINES // self._tasks
        if step > self._told:
            self._told = step
            self.say(f"{sample.at_s:6.0f} s  {sample.done}/{self._tasks}  {words(sample)}".rstrip())


def words(sample: Sample) -> str:
    """Return the worker's state in a few words; nothing of a worker that can't be seen."""
    parts = []
    if sample.processes is not None and sample.rss_mb is not None and sample.unique_mb is not None:
        children = sample.processes - 1
        parts.append(f"{children} child{'' if children == 1 else 'ren'}")
        parts.append(f"RSS {sample.rss_mb:.0f} MB, unique {sample.unique_mb:.0f} MB")
    if sample.gone:
        parts.append("the worker is gone")
    if sample.in_flight is not None:
        parts.append(f"{sample.in_flight} in flight")
    if sample.events is not None:
        parts += [f"{name} {sample.events[name]}" for name in (*DECISIONS, "kills") if sample.events[name]]
    return "  ".join(parts)
