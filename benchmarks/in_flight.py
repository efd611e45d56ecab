"""What a worker costs with 50 tasks in flight, on both pools: the figures of the README.

    .venv/bin/python -m benchmarks.in_flight [--tasks 1000] [--in-flight 50] [--runs 3]

Starts its own broker and model server on loopback. Each run of a pool is a
worker of its own: first it is filled with tasks that take a second, and its
memory is read while exactly that many are at the model server; then it does
tasks that take no time, and its CPU time is divided by their number. Only
figures of one run compare: machines differ, and this one may be busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from forwarder.demo.measure import MIB, memory
from forwarder.testing.processes import family
from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

QUEUE = "bench"
HELD_S = 1.0  # how long a task of the memory phase stays at the model server


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The figures of one worker."""

    pool: str
    processes: int
    rss_mib: float
    unique_mib: float
    cpu_ms_per_task: float
    tasks_per_s: float


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that the process and its living descendants have used."""
    times = [process.cpu_times() for process in family(pid)]
    return sum(each.user + each.system for each in times)


def send(producer: Producer, number: int, **behaviour: Any) -> list[Any]:
    return [producer.send({"args": {"numbers": [n], "behaviour": behaviour}}) for n in range(number)]


def check(results: Sequence[Any]) -> None:
    for number, result in enumerate(results):
        assert result.get(timeout=120)["result"]["sum"] == number


def measure(pool: str, *, valkey: Valkey, model: ModelServer, in_flight: int, tasks: int) -> Run:
    """Run one worker through both phases."""
    model.control(reset=True)
    env = model.env | {
        "FORWARDER_BROKER_URL": valkey.database(0),
        "FORWARDER_RESULT_BACKEND": valkey.database(1),
        "FORWARDER_QUEUES": QUEUE,
        "FORWARDER_CONCURRENCY": str(in_flight),
    }
    with running(pool, env) as worker, sending(valkey) as producer:
        held = send(producer, 3 * in_flight, sleep_s=HELD_S)
        model.wait_in_flight(in_flight)
        full = memory(worker.pid)
        check(held)
        consumer = psutil.Process(worker.pid)
        consumer.suspend()  # so that the producer's speed is not part of the figure
        waiting = send(producer, tasks)
        started, used_s = time.monotonic(), cpu_s(worker.pid)
        consumer.resume()
        check(waiting)
        elapsed_s, used_s = time.monotonic() - started, cpu_s(worker.pid) - used_s
        return Run(
            pool=pool,
            processes=full.processes,
            rss_mib=full.rss_bytes / MIB,
            unique_mib=full.unique_bytes / MIB,
            cpu_ms_per_task=1000 * used_s / tasks,
            tasks_per_s=tasks / elapsed_s,
        )


@contextmanager
def running(pool: str, env: dict[str, str]) -> Iterator[Worker]:
    with Worker(pool=pool, env=env) as worker:
        worker.wait_ready()
        yield worker


@contextmanager
def sending(valkey: Valkey) -> Iterator[Producer]:
    producer = Producer(broker_url=valkey.database(0), backend=valkey.database(1), queue=QUEUE)
    try:
        yield producer
    finally:
        producer.close()


def median(runs: Sequence[Run]) -> Run:
    """Return the medians of the runs, figure by figure."""
    figures = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in asdict(runs[0])
        if name != "pool"
    }
    return Run(pool=runs[0].pool, **figures)


def table(rows: Sequence[Run], *, in_flight: int, tasks: int) -> str:
    lines = [
        f"{in_flight} tasks in flight for the memory, {tasks} tasks for the rest:",
        "| pool | processes | RSS MiB | unique MiB | CPU ms a task | tasks/s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.pool} | {run.processes} | {run.rss_mib:.0f} | {run.unique_mib:.0f} "
        f"| {run.cpu_ms_per_task:.2f} | {run.tasks_per_s:.0f} |"
        for run in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure both pools in turn and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print every run as JSON too")
    options = parser.parse_args()
    runs: dict[str, list[Run]] = {"gevent": [], "prefork": []}
    with Valkey() as valkey, ModelServer() as model:
        for number in range(options.runs):
            for pool, done in runs.items():
                print(f"run {number + 1}/{options.runs}: {pool}", flush=True)
                done.append(
                    measure(
                        pool, valkey=valkey, model=model, in_flight=options.in_flight, tasks=options.tasks
                    )
                )
    print(table([median(done) for done in runs.values()], in_flight=options.in_flight, tasks=options.tasks))
    memory_ratio = median(runs["prefork"]).unique_mib / median(runs["gevent"]).unique_mib
    print(f"unique memory, prefork to gevent: {memory_ratio:.1f}")
    print(f"machine: {psutil.cpu_count()} processors")
    if options.json:
        print(json.dumps([asdict(run) for done in runs.values() for run in done]))


if __name__ == "__main__":
    main()
