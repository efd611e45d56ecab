"""What leases, delivery counts and the look for a stored result cost on the Redis path.

    .venv/bin/python -m benchmarks.guarantees [--tasks 2000] [--in-flight 50] [--runs 5] [--pool gevent]

Runs the worker and the same worker without its guarantees (benchmarks.bare_worker) in turn,
each over the same tasks that take no time at the model server, and prints the CPU time a task
of both and the difference of each pair. Only figures of one run compare.
"""

from __future__ import annotations

import argparse
import statistics
import time

import psutil

from benchmarks.in_flight import QUEUE, check, cpu_s, send, sending
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

MODULES = {"without": "benchmarks.bare_worker", "with": "forwarder"}
WARM_UP_TASKS = 100


def cpu_ms_per_task(module: str, *, pool: str, in_flight: int, tasks: int) -> float:
    """Return what one worker of its own, on a broker of its own, spends on a task."""
    with Valkey() as valkey, ModelServer() as model:
        env = model.env | {
            "FORWARDER_BROKER_URL": valkey.database(0),
            "FORWARDER_RESULT_BACKEND": valkey.database(1),
            "FORWARDER_QUEUES": QUEUE,
            "FORWARDER_CONCURRENCY": str(in_flight),
            "FORWARDER_LOG_LEVEL": "WARNING",
        }
        with Worker(pool=pool, env=env, module=module) as worker, sending(valkey) as producer:
            check(send(producer, WARM_UP_TASKS))
            consumer = psutil.Process(worker.pid)
            consumer.suspend()  # so that the producer's speed is not part of the figure
            waiting = send(producer, tasks)
            used_s = cpu_s(worker.pid)
            consumer.resume()
            check(waiting)
            time.sleep(0.5)  # the last acks
            return 1000 * (cpu_s(worker.pid) - used_s) / tasks


def main() -> None:
    """Measure pairs in turn and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pool", default="gevent", choices=("gevent", "prefork"))
    options = parser.parse_args()
    figures: dict[str, list[float]] = {name: [] for name in MODULES}
    for number in range(options.runs):
        for name, module in MODULES.items():
            figure = cpu_ms_per_task(
                module, pool=options.pool, in_flight=options.in_flight, tasks=options.tasks
            )
            figures[name].append(figure)
            print(f"run {number + 1}/{options.runs}: {name} guarantees {figure:.2f} ms", flush=True)
    pairs = [with_ - without for without, with_ in zip(figures["without"], figures["with"], strict=True)]
    print(
        f"{options.pool}, {options.in_flight} in flight, {options.tasks} tasks, "
        f"medians of {options.runs} runs: without {statistics.median(figures['without']):.2f} ms a task, "
        f"with {statistics.median(figures['with']):.2f} ms, difference {statistics.median(pairs):+.2f} ms "
        f"({min(pairs):+.2f} to {max(pairs):+.2f})"
    )


if __name__ == "__main__":
    main()
