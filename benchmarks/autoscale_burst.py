"""The burst: many tasks at once on a prefork pool that may have 100 children, in memory for about 20.

Children grow to their size only when they work, which is when an autoscaler that looks at free
memory has long started too many. Runs the autoscaler, the same with its upper mark raised, fixed
numbers of children and stock Celery's autoscaler in a memory cgroup each, as root:
``python -m benchmarks.autoscale_burst --out FOLDER``. Prints a table and writes ``burst.json``,
which ``benchmarks.burst_plot`` draws. About 17 minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.memory_burst import Bench, Burst
from forwarder.testing.services import ModelServer, Valkey

AUTOSCALE = ("--autoscale", "100,2")
TIMEOUT_S = 1800.0
#: Part of the limit under which a run counts as safe.
SAFE = 0.75
#: Percent of the limit above which the pool shrinks, where an operator puts it next to that.
HIGH_PERCENT = "74"


def main() -> None:
    """Run all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds of one inference (default: 2)")
    parser.add_argument("--grow-mb", type=int, default=24, help="what a child takes with its first task")
    parser.add_argument("--limit-mb", type=int, default=1215, help="the cgroup's limit")
    parser.add_argument("--fixed", default="20,22,23", help="fixed numbers of children to compare with")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with Valkey() as valkey, ModelServer() as model_server:
        bench = Bench(
            valkey=valkey, model_server=model_server, tasks=options.tasks, sleep_s=options.sleep,
            grow_mb=options.grow_mb, limit_mb=options.limit_mb,
        )  # fmt: skip
        ways = {
            "forwarder, --autoscale 100,2": AUTOSCALE,
            f"the same, up to {HIGH_PERCENT} %": (*AUTOSCALE, "--memory-high-percent", HIGH_PERCENT),
        }
        bursts = []
        for name, args in ways.items():
            bursts.append(bench.run(name, args, timeout_s=TIMEOUT_S))
            print(line(bursts[-1]), flush=True)
        for number in options.fixed.split(","):
            bursts.append(bench.run(f"fixed {number}", ["--concurrency", number], timeout_s=TIMEOUT_S))
            print(line(bursts[-1]), flush=True)
        bursts.append(
            bench.run(
                "stock Celery, --autoscale 100,2", ["--stock", *AUTOSCALE], stop_at_kill=True, timeout_s=120.0
            )
        )
        print(line(bursts[-1]), flush=True)
    print(verdict(bursts))
    (options.out / "burst.json").write_text(json.dumps([asdict(burst) for burst in bursts]))


def line(burst: Burst) -> str:
    """Return one run as a line of the table."""
    return (
        f"{burst.name:32} {burst.done:5}/{burst.tasks} done  {burst.tasks_per_s:6.2f}/s  "
        f"{burst.children:3} children  peak {100 * burst.peak:5.1f} % of the limit  {burst.kills} killed"
    )


def verdict(bursts: Sequence[Burst]) -> str:
    """Return the autoscaler's throughput against the fixed numbers that were safe."""
    ours, further, *fixed, _ = bursts
    return "\n".join(
        f"of {burst.name}: {100 * ours.tasks_per_s / burst.tasks_per_s:.1f} %, "
        f"{further.name}: {100 * further.tasks_per_s / burst.tasks_per_s:.1f} %"
        for burst in fixed
        if not burst.kills and burst.peak < SAFE
    )


if __name__ == "__main__":
    main()
