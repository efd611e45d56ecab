"""Whether the worker stays flat for hours: unique memory, descriptors and connections under load.

    scripts/soak                                     both pools, 20,000 tasks each, some ten minutes
    scripts/soak --minutes 120 --tasks 1000000       hours
    scripts/soak --churn                             a client for each task beside it, as the ancestor had
    scripts/soak --allocators default,arenas,trim,jemalloc --tasks 2000

The worker takes tasks of 64 bytes to 32 KiB from SQS, stores results in S3 and sends a record of
each to Firehose, all in a local stand-in for AWS whose tokens live for seconds, so that the
Firehose client is rebuilt again and again. Exits with 1 when a run without churn grows. A run of
less than 3,000 tasks for each process that runs tasks is too short to tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.soak.plot import page
from benchmarks.soak.run import GROWTH_MAX, Plan, Soaked, soak
from benchmarks.soak.scene import SoakCloud
from forwarder.testing.services import CHECKOUT, ModelServer

CONCURRENCY = {"gevent": 32, "prefork": 4}
#: A client costs 0.2 s of CPU for each task with churn.
CHURN_TASKS = 800
TRIM_S = "10"
JEMALLOC = ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2")
ALLOCATORS = ("default", "arenas", "trim", "jemalloc")


def main() -> int:
    """Soak, print a table, write JSON and plots."""
    options = parsed()
    done: list[Soaked] = []
    for plan in plans(options):
        print(f"{plan.pool} {plan.name}", file=sys.stderr)
        # A cloud for each run: this one keeps all it was ever given.
        with SoakCloud(life_s=options.life) as cloud, ModelServer() as model:
            done.append(soak(plan, cloud=cloud, model=model))
        options.out.mkdir(parents=True, exist_ok=True)
        runs = [each.as_json() for each in done]
        (options.out / "soak.json").write_text(json.dumps({"schema": "forwarder-soak/1", "runs": runs}))
        (options.out / "soak.html").write_text(page(done))
    show(done)
    return 1 if any(each.verdict == "grows" for each in done if each.name != "churn") else 0


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default="gevent,prefork")
    parser.add_argument("--tasks", type=int, default=20_000, help="of a run (default: 20000)")
    parser.add_argument("--minutes", type=float, default=15, help="at most, of a run (default: 15)")
    parser.add_argument("--churn", action="store_true", help="with a client for each task too")
    parser.add_argument("--allocators", default="default", help=f"of {','.join(ALLOCATORS)}")
    parser.add_argument(
        "--jemalloc", default="", metavar="FILE", help="libjemalloc.so.2, where it isn't found"
    )
    parser.add_argument("--payload-bytes", type=int, default=32_768, metavar="N", help="of the largest task")
    parser.add_argument("--life", type=int, default=40, metavar="SECONDS", help="of a token (default: 40)")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks/results", metavar="FOLDER")
    return parser.parse_args()


def plans(options: argparse.Namespace) -> Iterator[Plan]:
    """Yield the runs that were asked for."""
    for pool in options.pools.split(","):
        runs = [(name, options.tasks, allocator_env(name, options)) for name in options.allocators.split(",")]
        if options.churn:
            runs.append(("churn", min(options.tasks, CHURN_TASKS), {"SOAK_CHURN": "1"}))
        for name, tasks, env in runs:
            switched = any(key.startswith("SOAK_") for key in env)
            yield Plan(
                name=name,
                pool=pool,
                concurrency=CONCURRENCY[pool],
                tasks=tasks,
                seconds=60 * options.minutes,
                payload_bytes=options.payload_bytes,
                module="benchmarks.soak.worker" if switched else "forwarder",
                env=env,
            )


def allocator_env(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Return what switches an allocator on. Ends the program where that isn't there."""
    if name == "jemalloc":
        found = [path for path in (options.jemalloc, *JEMALLOC) if path and Path(path).exists()]
        if not found:
            raise SystemExit("no libjemalloc.so.2: apt-get install libjemalloc2, or name it with --jemalloc")
        return {"LD_PRELOAD": found[0]}
    envs = {"default": {}, "arenas": {"MALLOC_ARENA_MAX": "2"}, "trim": {"SOAK_TRIM_S": TRIM_S}}
    if name not in envs:
        raise SystemExit(f"no allocator {name}: there are {', '.join(ALLOCATORS)}")
    return envs[name]


def show(runs: list[Soaked]) -> None:
    """Print the table."""
    table = Table(title="Soak: SQS, S3, Firehose", title_justify="left")
    table.add_column("run")
    titles = (
        "tasks", "tasks/s", "client builds", "unique MB at start", "peak", "end", "RSS MB, peak",
        "MB / 10,000 tasks", "descriptors", "connections", "verdict",
    )  # fmt: skip
    for title in titles:
        table.add_column(title, justify="right")
    for run in runs:
        table.add_row(
            f"{run.pool} {run.name}", f"{run.tasks}", f"{run.tasks / run.seconds:.1f}",
            f"{run.client_builds}",
            f"{run.unique_start_mb:.1f}", f"{run.unique_peak_mb:.1f}", f"{run.unique_end_mb:.1f}",
            f"{run.rss_peak_mb:.1f}", f"{run.growth_mb:+.2f}", f"{run.descriptors_growth:+d}",
            f"{run.connections_growth:+d}", run.verdict,
        )  # fmt: skip
    console = Console(width=max(150, Console().width))
    console.print(table)
    console.print(f"flat: under {GROWTH_MAX} MB of unique memory for 10,000 tasks, no descriptor more")


if __name__ == "__main__":
    sys.exit(main())
