"""From exec to consuming, beside a bare Celery worker with the same imports; and a worker with nothing to do.

    scripts/bench start [--runs 5] [--idle 30] [--concurrency 4] [--file FILE]

Starts its own services on loopback. First a worker starts under ``python -X importtime``: the
heaviest of its imports are printed, and all go to the file. Then the two workers take turns, and
the medians are shown: CPU seconds compare, wall seconds suffer from whatever else the machine does.
``--idle`` lets a worker of each pool wait on each broker for so many seconds, and prints the share
of a core that it took.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.redis_path import cpu_s
from forwarder.demo.measure import MIB
from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import Command, Process, clean_env
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from forwarder.testing.worker import READY, Worker

POOLS = ("gevent", "prefork")
#: What a worker on Redis loads of the forwarder; the bare worker is given them with ``--include``.
SAME_IMPORTS = (
    "forwarder.cli.run", "forwarder.worker", "forwarder.app", "forwarder.draining_worker",
    "forwarder.brokers.keeper", "forwarder.brokers.consumer", "forwarder.brokers.request",
    "forwarder.brokers.redis.transport", "forwarder.brokers.redis.leases", "forwarder.results.redis",
    "forwarder.prefork_pool", "forwarder.green_pool",
)  # fmt: skip
#: Of the import list, and seconds for what starts up to be over before a worker counts as idle.
IMPORTS_SHOWN, SETTLING_S = 10, 3.0
#: What ``-X importtime`` writes: its own microseconds, those with what it imports, the module.
IMPORTED = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|( *)([\w.]+)")

Env = dict[str, str]


def commands(pool: str, concurrency: int) -> dict[str, list[str]]:
    """Return how the two workers are started."""
    celery = [str(Path(sys.executable).parent / "celery"), "-A", "benchmarks.rivals.celery_rival", "worker"]
    lean = ["--without-gossip", "--without-mingle", "-l", "INFO", "-Q", "bench"]
    return {
        "forwarder": [sys.executable, "-m", "forwarder"],
        "bare celery": [*celery, *lean, "-P", pool, "-c", str(concurrency), "-I", ",".join(SAME_IMPORTS)],
    }


def start(argv: list[str], env: Env) -> tuple[float, float]:
    """Start a worker; return the CPU and the wall seconds until it consumes."""
    with Process(name="started", stop_timeout_s=20.0) as process:
        began = time.monotonic()
        process.start(Command(argv=argv, env=clean_env(process.folder) | {"PYTHONPATH": str(CHECKOUT)} | env))
        process.wait_until(lambda: READY in process.log(), timeout_s=90.0, interval_s=0.01)
        return cpu_s(process.pid), time.monotonic() - began


def show_starts(env: Env, *, runs: int, concurrency: int) -> None:
    """Let the two workers start in turns, on each pool."""
    for pool in POOLS:
        taken: dict[str, list[tuple[float, float]]] = {}
        for _ in range(runs):
            for name, argv in commands(pool, concurrency).items():
                taken.setdefault(name, []).append(start(argv, env | {"CELERY_WORKER_POOL": pool}))
        cpu = {name: statistics.median(each[0] for each in times) for name, times in taken.items()}
        for name, times in taken.items():
            wall = statistics.median(each[1] for each in times)
            print(f"start {pool:8} {name:12} CPU {cpu[name]:.2f} s, wall {wall:.2f} s", flush=True)
        print(
            f"start {pool:8} ratio of the CPU time: {cpu['forwarder'] / cpu['bare celery']:.2f}", flush=True
        )


def show_idle(brokers: dict[str, Env], *, seconds: float) -> None:
    """Print what waiting costs; of the prefork pool also what each child holds alone."""
    for broker, env in brokers.items():
        for pool in POOLS:
            with Worker(pool=pool, env=env) as worker:
                worker.wait_ready()
                time.sleep(SETTLING_S)
                before_s = cpu_s(worker.pid)
                time.sleep(seconds)
                share = (cpu_s(worker.pid) - before_s) / seconds
                alone = [psutil.Process(pid).memory_full_info().uss / MIB for pid in worker.children()]
                held = f", a child alone {statistics.median(alone):.0f} MiB" if alone else ""
                print(f"idle {broker:8} {pool:8} {share:.2%} of a core{held}", flush=True)


def show_imports(env: Env, file: Path) -> None:
    """Start a worker that notes its imports; write them all, and print the heaviest."""
    argv = [sys.executable, "-X", "importtime", "-m", "forwarder"]
    with Process(name="imports", stop_timeout_s=20.0) as process:
        process.start(Command(argv=argv, env=clean_env(process.folder) | {"PYTHONPATH": str(CHECKOUT)} | env))
        process.wait_until(lambda: READY in process.log(), timeout_s=90.0)
        lines = [match for line in process.log().splitlines() if (match := IMPORTED.search(line))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(line[0] for line in lines) + "\n")
    own_ms = sum(int(line[1]) for line in lines) / 1000
    print(
        f"imports until consuming: {len(lines)} modules, {own_ms:.0f} ms under -X importtime; all in {file}"
    )
    for group, title in ((1, "by itself"), (2, "with what it imports")):
        print(f"ms {title}:")
        for line in sorted(lines, key=lambda each: -int(each[group]))[:IMPORTS_SHOWN]:
            print(f"{int(line[group]) / 1000:8.1f}  {line[4]}", flush=True)


@contextmanager
def services(*, all_brokers: bool) -> Iterator[dict[str, Env]]:
    """Start what the workers need; yield their settings by broker."""
    with contextlib.ExitStack() as stack:
        valkey, model = stack.enter_context(Valkey()), stack.enter_context(ModelServer())
        base = model.env | {"FORWARDER_QUEUES": "bench", "FORWARDER_RESULT_BACKEND": valkey.database(1)}
        rival = {"BENCH_BROKER_URL": valkey.database(0), "BENCH_RESULTS_URL": valkey.database(1)}
        brokers = {"redis": base | rival | {"FORWARDER_BROKER_URL": valkey.database(0)}}
        if all_brokers:
            moto, rabbitmq = stack.enter_context(Moto()), stack.enter_context(RabbitMQ())
            url = aws_resources.create_queue(moto.env, "bench")
            sqs = {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
            brokers["sqs"] = base | moto.env | sqs
            brokers["rabbitmq"] = base | {"FORWARDER_BROKER_URL": rabbitmq.url}
        yield brokers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="starts of each worker; 0 skips them (default: 5)"
    )
    parser.add_argument(
        "--file", type=Path, default=CHECKOUT / "benchmarks/results/imports.txt", help="of all imports"
    )
    parser.add_argument("--idle", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--concurrency", type=int, default=4)
    options = parser.parse_args()
    with services(all_brokers=options.idle > 0) as brokers:
        for env in brokers.values():
            env["FORWARDER_CONCURRENCY"] = str(options.concurrency)
        show_imports(brokers["redis"] | {"CELERY_WORKER_POOL": "gevent"}, options.file)
        if options.runs:
            show_starts(brokers["redis"], runs=options.runs, concurrency=options.concurrency)
        if options.idle:
            show_idle(brokers, seconds=options.idle)


if __name__ == "__main__":
    main()
