"""Medians of runs, with what they scatter, and the tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.redis_path import Figures

REFERENCE = "celery tuned"
COLUMNS = {
    "cpu_ms_0s": "CPU ms\na task",
    "ratio": "of\ntuned",
    "tasks_per_s_0s": "tasks/s",
    "paced_per_s": "at\n/s",
    "p50_ms": "p50\nms",
    "p99_ms": "p99\nms",
    "cpu_ms_1s": "1 s: CPU\nms a task",
    "ideal_1s": "1 s: of\nideal",
    "rss_mib": "RSS\nMiB",
    "unique_mib": "unique\nMiB",
}
#: Of the table in characters, where the screen is narrower: a file, most of all.
WIDTH = 140

Row = dict[str, Any]


def medians(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each system and number in flight: medians, and ``spread``: lowest and highest.

    ``runs`` counts the runs that it is of; ``failed`` has what went wrong in others. A
    figure that no run has is None, as is a ``ratio`` to a reference that is not there.
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["in_flight"], row["system"]), []).append(row)
    found = [
        _median(in_flight, system, group)
        for (in_flight, system), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]
    reference = {row["in_flight"]: row["cpu_ms_0s"] for row in found if row["system"] == REFERENCE}
    for row in found:
        ours, theirs = row["cpu_ms_0s"], reference.get(row["in_flight"])
        row["ratio"] = ours / theirs if ours and theirs else None
    return found


def _median(in_flight: int, system: str, group: Sequence[Row]) -> Row:
    done = [row for row in group if "failed" not in row]
    median: Row = {"system": system, "in_flight": in_flight, "runs": len(done), "spread": {}}
    median["failed"] = [row["failed"] for row in group if "failed" in row]
    for name in (field.name for field in fields(Figures)):
        values = [row[name] for row in done if row[name] is not None]
        median[name] = statistics.median(values) if values else None
        if values:
            median["spread"][name] = [min(values), max(values)]
    return median


def show(rows: Sequence[Row]) -> None:
    """Print a table for each number in flight."""
    console = Console(width=max(WIDTH, Console().width))
    for in_flight in sorted({row["in_flight"] for row in rows}):
        table = Table(
            title=f"{in_flight} in flight", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("worker", no_wrap=True)
        for title in COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("runs", justify="right")
        here = [row for row in rows if row["in_flight"] == in_flight]
        for row in here:
            table.add_row(row["system"], *(_cell(row, name) for name in COLUMNS), str(row["runs"]))
        console.print(table)
        for row in here:
            for why in row["failed"]:
                console.print(f"failed: {row['system']}: {why}", markup=False)
    console.print(
        "Medians; ±: half of what lies between the lowest and the highest run. p50, p99: added to the "
        "inference time,\nat the rate left of them, which is half of the worker's own. Of ideal: of slots / "
        "inference time,\nwhile every slot has a task. Floors: an HTTP client in a loop, without a queue."
    )


def _cell(row: Row, name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row["spread"].get(name, (0.0, 0.0))
    text = f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.3g}"
    return f"{text}±{(high - low) / 2:.2g}" if high > low else text
