"""The forwarder beside stock Celery on SQS, S3 and Firehose: AWS calls and CPU a task, in one run.

    scripts/bench sqs                 about five minutes
    scripts/bench sqs --runs 1 --tasks 200 --systems forwarder

Last comes how long a message waits for a worker with nothing to do, and what such a worker asks of AWS.
Every worker has the same moto server (which counts the calls), the same model server without
inference time, a backlog to work off, and one Firehose record for each task. CPU time is what
compares: moto takes longer than AWS, so tasks a second say nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.redis_path import Bench, EchoServer, cpu_s
from benchmarks.report import WIDTH
from benchmarks.sqs_idle import pick_up, show_pick_ups
from benchmarks.sqs_scene import CountedMoto, Scene, scene
from benchmarks.systems import OWN, System
from forwarder.testing.processes import Process, clean_env
from forwarder.testing.services import CHECKOUT

REFERENCE = "celery gevent, shared backend"

Row = dict[str, Any]


def _forwarder(pool: str) -> System:
    return System(
        name=f"forwarder {pool}",
        sender="",
        command=("python", "-m", "forwarder"),
        ready=" ready.",
        env={"CELERY_WORKER_POOL": pool, "FORWARDER_HOOKS": "logging", "FORWARDER_BROKER_URL": "sqs://"},
    )


def _celery(name: str, **env: str) -> System:
    """Return stock Celery. Under gevent only: its prefork needs pycurl for SQS."""
    arguments = ("-A", "benchmarks.rivals.sqs_rival", "worker", "-P", "gevent", "-c", "{n}", "-l", "INFO")
    return System(name=name, sender="", command=("celery", *arguments), ready=" ready.", bin=OWN, env=env)


SYSTEMS = (
    _forwarder("gevent"),
    _forwarder("prefork"),
    _celery("celery gevent"),
    _celery(REFERENCE, BENCH_TUNED="1"),
)


def measure(scene: Scene, system: System, *, in_flight: int, tasks: int) -> Row:
    """Run one worker: warm it up, then let it work off a backlog."""
    where = dict(scene.where) | clean_env(Path("/nonexistent"))
    worker: Process = system.start(where, in_flight=in_flight, cpu=None)
    try:
        scene.send(2 * in_flight)
        scene.wait_done(2 * in_flight)
        Bench.signal(worker, signal.SIGSTOP)  # the sender's speed is not part of the figures
        scene.send(tasks)
        scene.moto.counts()
        before_s = cpu_s(worker.pid)
        Bench.signal(worker, signal.SIGCONT)
        scene.wait_done(tasks)
        used_s, counts = cpu_s(worker.pid) - before_s, scene.moto.counts()
    finally:
        worker.stop()
    calls = {name: number / tasks for name, number in sorted(counts.items())}
    besides = sum(number for name, number in calls.items() if not name.startswith("Firehose"))
    return {"system": system.name, "cpu_ms": 1000 * used_s / tasks, "calls_besides": besides, "calls": calls}


def medians(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each system."""
    found = []
    for name in dict.fromkeys(row["system"] for row in rows):
        group = [row for row in rows if row["system"] == name]
        operations = sorted({each for row in group for each in row["calls"]})
        found.append(
            {
                "system": name,
                "cpu_ms": statistics.median(row["cpu_ms"] for row in group),
                "cpu_spread_ms": max(r["cpu_ms"] for r in group) - min(r["cpu_ms"] for r in group),
                "calls_besides": statistics.median(row["calls_besides"] for row in group),
                "calls": {
                    each: statistics.median(row["calls"].get(each, 0.0) for row in group)
                    for each in operations
                },
            }
        )
    base = [row["cpu_ms"] for row in found if row["system"] == REFERENCE]
    for row in found:
        row["ratio"] = row["cpu_ms"] / base[0] if base else float("nan")
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("worker", title="SQS, S3, Firehose", title_justify="left")
    for title in ("CPU ms/task", "of stock", "calls/task besides Firehose", "calls/task"):
        table.add_column(title, justify="right")
    for row in rows:
        calls = "\n".join(f"{name} {number:.2f}" for name, number in row["calls"].items() if number >= 0.005)
        figures = (f"{row['cpu_ms']:.3g}", f"{row['ratio']:.2f}", f"{row['calls_besides']:.2f}")
        table.add_row(row["system"], *figures, calls, end_section=True)
    Console(width=max(WIDTH, Console().width)).print(table)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench sqs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds; the medians are shown (default: 3)")
    parser.add_argument("--tasks", type=int, default=300, help="of the backlog (default: 300)")
    parser.add_argument("--in-flight", type=int, default=50, metavar="N")
    parser.add_argument("--systems", default="", help="parts of names, with commas between (default: all)")
    parser.add_argument("--json", type=Path, default=CHECKOUT / "benchmarks/results/sqs.json", metavar="FILE")
    options = parser.parse_args()
    parts = options.systems.split(",")
    systems = [system for system in SYSTEMS if any(part in system.name for part in parts)]
    rows: list[Row] = []
    idle: list[Row] = []
    with CountedMoto() as moto, EchoServer() as echo:
        for number in range(options.runs):
            for system in systems:
                print(f"run {number + 1}: {system.name}", file=sys.stderr)
                with scene(moto, echo) as made:
                    rows.append(measure(made, system, in_flight=options.in_flight, tasks=options.tasks))
        for system in (each for each in systems if each.name.startswith("forwarder")):
            print(f"idle: {system.name}", file=sys.stderr)
            with scene(moto, echo) as made:
                idle.append(pick_up(made, system, in_flight=options.in_flight))
    found = medians(rows)
    show(found)
    show_pick_ups(idle)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"medians": found, "runs": rows, "idle": idle}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
