"""The forwarder beside the workers that its users would switch from or to, in one run.

    scripts/bench                     at most a quarter of an hour
    scripts/bench --whole --minutes 60
    scripts/bench --runs 1 --in-flight 50 --systems forwarder,tuned,dramatiq
    scripts/bench --guard             what scripts/test runs: CPU a task against tuned Celery, about a minute
    scripts/bench sqs                 SQS, S3 and Firehose: CPU and AWS calls a task, beside stock Celery
    scripts/bench start               from start to consuming, beside a bare Celery worker

Everything is measured once; what is left of the time goes to repetitions, without the second of
inference time and at the first number in flight, and of the forwarder at all of it; ``--whole``
repeats everything. Each worker is alone on one processor; Redis, the model server and the sender share the
others. CPU time is what compares: tasks a second and latencies suffer from whatever else
the machine does. Only figures of one run compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.redis_path import PACED_S, Bench, EchoServer, Figures, measure
from benchmarks.report import REFERENCE, Row, medians, show
from benchmarks.stored import Stored
from benchmarks.systems import FLOORS, RIVALS, SYSTEMS, Floor, System
from forwarder.testing.processes import clean_env
from forwarder.testing.services import CHECKOUT, Valkey

OURS = "forwarder gevent"
#: What the forwarder under gevent may cost of tuned Celery's CPU a task, in the same run.
GUARD_RATIO = 0.5
#: Of an error, in its row.
ERROR_CHARS = 200

Worker = System | Floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement: its round, the worker, how many in flight, and how many rounds of a second."""

    run: int
    in_flight: int
    system: Worker
    rounds_1s: int

    def __str__(self) -> str:
        return f"run {self.run + 1}: {self.system.name}, {self.in_flight} in flight"


def plan(
    systems: Sequence[Worker], *, runs: int, in_flight: Sequence[int], rounds_1s: int, whole: bool
) -> list[Cell]:
    """Return what to measure, in the order of what is missed most where the time is short."""
    cells = []
    for run in range(runs):
        for number in in_flight:
            for system in systems:
                in_full = whole or run == 0 or system.name == OURS
                if number <= system.in_flight_max and (in_full or number == in_flight[0]):
                    rounds = rounds_1s if in_full else 0
                    cells.append(Cell(run=run, in_flight=number, system=system, rounds_1s=rounds))
    return cells


def services(cpus: Sequence[int]) -> Iterator[Bench]:
    """Start what the workers share; the last processor is left to the worker where there are two."""
    pinned = cpus[-1] if len(cpus) > 1 and sys.platform == "linux" else None
    if pinned is not None:
        os.sched_setaffinity(0, set(cpus) - {pinned})
    with Valkey() as valkey, EchoServer() as echo:
        yield Bench(valkey=valkey, echo=echo, stored=Stored(valkey.database(1)), cpu=pinned)


def run(cells: Sequence[Cell], *, tasks: int, paced_s: float, until: float) -> list[Row]:
    """Measure one after the other and begin none after ``until``; what fails has a row that says so."""
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(cells))
        for bench in services(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []):
            for cell in cells:
                if time.monotonic() > until:
                    progress.console.print(f"out of time: {len(cells) - len(rows)} measurements are left out")
                    break
                progress.update(bar, description=str(cell))
                row = {"run": cell.run, "system": cell.system.name, "in_flight": cell.in_flight}
                try:
                    row |= asdict(one(bench, cell, tasks=tasks, paced_s=paced_s))
                    words = f"{row['cpu_ms_0s']:.2f} ms of CPU a task"
                except Exception as error:  # noqa: BLE001 - the others are measured all the same
                    words = f"failed: {type(error).__name__}: {error}".strip()
                    row["failed"] = words[-ERROR_CHARS:]
                # A line each: the bar is for terminals alone.
                progress.console.print(f"{cell}: {words}", markup=False, highlight=False)
                rows.append(row)
                progress.advance(bar)
    return rows


def one(bench: Bench, cell: Cell, *, tasks: int, paced_s: float) -> Figures:
    """Measure a worker or a floor. Raises whatever it fails by."""
    if isinstance(cell.system, Floor):
        where = bench.where | clean_env(Path("/nonexistent")) | {"PYTHONPATH": str(CHECKOUT)}
        load = (tasks, cell.rounds_1s)
        printed = cell.system.figures(where, in_flight=cell.in_flight, cpu=bench.cpu, load=load)
        return Figures(**json.loads(printed))
    return measure(
        bench,
        cell.system,
        in_flight=cell.in_flight,
        tasks=tasks,
        rounds_1s=cell.rounds_1s,
        paced_s=paced_s,
    )


def guard(rows: Sequence[Row]) -> int:
    """Return 1 when the forwarder costs more of tuned Celery's CPU than is allowed, or was not measured."""
    cost = {row["system"]: row["cpu_ms_0s"] for row in rows}
    ours, theirs = cost[OURS], cost[REFERENCE]
    if ours is None or theirs is None:
        print("no figures", *(why for row in rows for why in row["failed"]), sep="; ")
        return 1
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
    parser.add_argument("--runs", type=int, default=3, help="at most; the medians are shown (default: 3)")
    parser.add_argument("--minutes", type=float, default=14.0, help="begin nothing after these (default: 14)")
    parser.add_argument("--whole", action="store_true", help="repeat everything, not only what matters most")
    parser.add_argument("--tasks", type=int, default=1000, help="of the phase without inference time")
    parser.add_argument("--rounds-1s", type=int, default=12, help="tasks a slot in the 1 s phase; 0 skips it")
    parser.add_argument("--systems", default="", help="parts of names, with commas between (default: all)")
    parser.add_argument(
        "--json", type=Path, default=CHECKOUT / "benchmarks/results/redis.json", metavar="FILE"
    )
    parser.add_argument("--guard", action="store_true", help="fail when the forwarder became dearer")
    options = parser.parse_args()
    if options.guard:
        options.systems, options.in_flight, options.rounds_1s = f"{OURS},{REFERENCE}", [50], 0
        options.tasks = 1500
    return options


def main() -> int:
    """Measure, print and draw."""
    options = parse()
    until = time.monotonic() + 60.0 * options.minutes
    parts = options.systems.split(",")
    systems = [each for each in (*SYSTEMS, *FLOORS) if any(part in each.name for part in parts)]
    cells = plan(
        systems,
        runs=options.runs,
        in_flight=options.in_flight,
        rounds_1s=options.rounds_1s,
        whole=options.whole or options.guard,
    )
    rows = run(cells, tasks=options.tasks, paced_s=0.0 if options.guard else PACED_S, until=until)
    found = medians(rows)
    if options.guard:
        return guard(found)
    show(found)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processors": psutil.cpu_count(), "at": time.strftime("%Y-%m-%d")}
    options.json.write_text(json.dumps({"machine": machine, "medians": found, "runs": rows}, indent=1))
    subprocess.run(
        [str(RIVALS / "python"), "-m", "benchmarks.plots", str(options.json)], cwd=CHECKOUT, check=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
