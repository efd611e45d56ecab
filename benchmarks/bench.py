"""The forwarder beside the workers that its users would switch from or to, in one run.

    scripts/bench                     everything: about an hour and a half
    scripts/bench --runs 1 --in-flight 50 --systems forwarder,tuned,dramatiq
    scripts/bench --guard             what scripts/test runs: CPU a task against tuned Celery, about a minute
    scripts/bench sqs                 SQS, S3 and Firehose: CPU and AWS calls a task, beside stock Celery
    scripts/bench start               from start to consuming, beside a bare Celery worker

Each worker is alone on one processor; Redis, the model server and the sender share the
others. CPU time is what compares: tasks a second and latencies suffer from whatever else
the machine does. Only figures of one run compare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.redis_path import PACED_S, Bench, EchoServer, Figures, Stored, measure
from benchmarks.systems import RIVALS, SYSTEMS, System
from forwarder.testing.services import CHECKOUT, Valkey

REFERENCE = "celery tuned"
#: What the forwarder under gevent may cost of tuned Celery's CPU a task, in the same run.
GUARD_RATIO = 0.6
COLUMNS = {
    "cpu_ms_0s": "CPU ms/task",
    "ratio": "of tuned",
    "tasks_per_s_0s": "tasks/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_ms_1s": "ditto, 1 s",
    "ideal_1s": "of ideal, 1 s",
    "rss_mib": "RSS MiB",
    "unique_mib": "unique MiB",
}

Row = dict[str, Any]


def services(cpus: Sequence[int]) -> Iterator[Bench]:
    """Start what the workers share; the last processor is left to the worker where there are two."""
    pinned = cpus[-1] if len(cpus) > 1 and sys.platform == "linux" else None
    if pinned is not None:
        os.sched_setaffinity(0, set(cpus) - {pinned})
    with Valkey() as valkey, EchoServer() as echo:
        yield Bench(valkey=valkey, echo=echo, stored=Stored(valkey.database(1)), cpu=pinned)


def run(options: argparse.Namespace, systems: Sequence[System]) -> list[Row]:
    """Measure every system at every number in flight, round by round."""
    cells = [
        (number, in_flight, system)
        for number in range(options.runs)
        for in_flight in options.in_flight
        for system in systems
        if in_flight <= system.in_flight_max
    ]
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(cells))
        for bench in services(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []):
            for number, in_flight, system in cells:
                progress.update(bar, description=f"run {number + 1}: {system.name}, {in_flight} in flight")
                figures = measure(
                    bench,
                    system,
                    in_flight=in_flight,
                    tasks=options.tasks,
                    rounds_1s=options.rounds_1s,
                    paced_s=0.0 if options.guard else PACED_S,
                )
                rows.append({"system": system.name, "in_flight": in_flight, **asdict(figures)})
                progress.advance(bar)
    return rows


def medians(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each system and number in flight, with the spread of the CPU time."""
    names = [field.name for field in fields(Figures)]
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["in_flight"], row["system"]), []).append(row)
    found = []
    for (in_flight, system), group in sorted(groups.items(), key=lambda item: item[0][0]):
        figures = {name: statistics.median(row[name] for row in group) for name in names}
        cpu = [row["cpu_ms_0s"] for row in group]
        found.append(
            {"system": system, "in_flight": in_flight, **figures, "cpu_spread_ms": max(cpu) - min(cpu)}
        )
    for row in found:
        base = [
            each for each in found if (each["in_flight"], each["system"]) == (row["in_flight"], REFERENCE)
        ]
        row["ratio"] = row["cpu_ms_0s"] / base[0]["cpu_ms_0s"] if base else float("nan")
    return found


def show(rows: Sequence[Row], *, runs: int) -> None:
    """Print a table for each number in flight."""
    console = Console(width=max(130, Console().width))
    for in_flight in sorted({row["in_flight"] for row in rows}):
        table = Table(title=f"{in_flight} in flight, medians of {runs}", title_justify="left")
        table.add_column("worker", no_wrap=True)
        for title in COLUMNS.values():
            table.add_column(title, justify="right")
        for row in rows:
            if row["in_flight"] == in_flight:
                table.add_row(row["system"], *(f"{row[name]:.3g}" for name in COLUMNS))
        console.print(table)


def guard(rows: Sequence[Row]) -> int:
    """Return 1 when the forwarder costs more of tuned Celery's CPU than is allowed."""
    cost = {row["system"]: row["cpu_ms_0s"] for row in rows}
    ours, theirs = cost["forwarder gevent"], cost[REFERENCE]
    ratio = ours / theirs
    verdict = "within" if ratio <= GUARD_RATIO else "OVER"
    print(f"CPU a task: {ours:.2f} ms, tuned Celery {theirs:.2f}; {ratio:.2f}, {verdict} {GUARD_RATIO}")
    return int(ratio > GUARD_RATIO)


def numbers(text: str) -> list[int]:
    """Return the numbers between the commas."""
    return [int(each) for each in text.split(",")]


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in-flight", type=numbers, default=[50, 256, 512], metavar="N,…")
    parser.add_argument("--runs", type=int, default=3, help="rounds; the medians are shown (default: 3)")
    parser.add_argument("--tasks", type=int, default=3000, help="of the phase without inference time")
    parser.add_argument("--rounds-1s", type=int, default=20, help="tasks a slot in the 1 s phase; 0 skips it")
    parser.add_argument("--systems", default="", help="parts of names, with commas between (default: all)")
    parser.add_argument(
        "--json", type=Path, default=CHECKOUT / "benchmarks/results/redis.json", metavar="FILE"
    )
    parser.add_argument("--guard", action="store_true", help="fail when the forwarder became dearer")
    options = parser.parse_args()
    if options.guard:
        options.systems, options.in_flight, options.rounds_1s = f"forwarder gevent,{REFERENCE}", [50], 0
        options.tasks = 1500
    return options


def main() -> int:
    """Measure, print and draw."""
    options = parse()
    parts = options.systems.split(",")
    systems = [system for system in SYSTEMS if any(part in system.name for part in parts)]
    rows = run(options, systems)
    found = medians(rows)
    if options.guard:
        return guard(found)
    show(found, runs=options.runs)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processors": psutil.cpu_count(), "at": time.strftime("%Y-%m-%d")}
    options.json.write_text(json.dumps({"machine": machine, "medians": found, "runs": rows}, indent=1))
    subprocess.run(
        [str(RIVALS / "python"), "-m", "benchmarks.plots", str(options.json)], cwd=CHECKOUT, check=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
