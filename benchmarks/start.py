"""From exec to consuming, beside a bare Celery worker with the same imports; and a worker with nothing to do.

    .venv/bin/python -m benchmarks.start [--runs 5] [--imports] [--idle 30] [--concurrency 4]

Starts its own services on loopback. The two workers take turns, and the medians are shown:
CPU seconds compare, wall seconds suffer from whatever else the machine does. ``--imports``
lists what the forwarder's imports cost, by themselves; ``--idle`` lets a worker of each
pool wait on each broker for so many seconds, and prints the share of a core that it took.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
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
    "forwarder.cli.run", "forwarder.worker", "forwarder.app", "forwarder.drain", "forwarder.brokers.keeper",
    "forwarder.brokers.consumer", "forwarder.brokers.request", "forwarder.brokers.redis.transport",
    "forwarder.brokers.redis.leases", "forwarder.results.redis", "forwarder.prefork_pool",
    "forwarder.green_pool",
)  # fmt: skip
#: Of the import list, and seconds for what starts up to be over before a worker counts as idle.
IMPORTS_SHOWN, SETTLING_S = 25, 3.0

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


def show_imports() -> None:
    """Print the modules that take longest to load, without what they import."""
    load = "import " + ", ".join(SAME_IMPORTS)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", load],
        cwd=CHECKOUT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines()[1:]]
    taken = sorted(((int(own), name.strip()) for own, _, name in lines), reverse=True)
    print(f"{len(taken)} modules, {sum(own for own, _ in taken) / 1000:.0f} ms; in ms, each by itself:")
    for own, name in taken[:IMPORTS_SHOWN]:
        print(f"{own / 1000:8.1f}  {name}")


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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="starts of each worker; 0 skips them (default: 5)"
    )
    parser.add_argument("--imports", action="store_true", help="list what the imports cost")
    parser.add_argument("--idle", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--concurrency", type=int, default=4)
    options = parser.parse_args()
    if options.imports:
        show_imports()
    with services(all_brokers=options.idle > 0) as brokers:
        for env in brokers.values():
            env["FORWARDER_CONCURRENCY"] = str(options.concurrency)
        if options.runs:
            show_starts(brokers["redis"], runs=options.runs, concurrency=options.concurrency)
        if options.idle:
            show_idle(brokers, seconds=options.idle)


if __name__ == "__main__":
    main()
