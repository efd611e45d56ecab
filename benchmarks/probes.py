"""How fast the worker's HTTP endpoints answer: under full load, and while its main thread stands still.

    python -m benchmarks.probes [--seconds 15] [--rate 20]

Workers on both pools take tasks from Redis as fast as they can; a client asks each endpoint in turn, on a
new connection each time, as a kubelet does. Then the main thread of each is made to stand still, once
asleep and once busy with Python code, and is asked again. Prints milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from forwarder.testing.processes import LOOPBACK, Command, Process, clean_env, free_port
from forwarder.testing.producer import Producer
from forwarder.testing.services import CHECKOUT, Valkey, http_status
from forwarder.testing.worker import Worker

PATHS = ("/livez", "/readyz", "/metrics", "/status")
SLOTS = {"gevent": 50, "prefork": 8}
QUEUE = "forwarder"
#: Messages that are put into the queue: more than are done in the time. And so many in one call.
MESSAGES, PUSHED = 100_000, 1000


def ask(port: int, path: str) -> float:
    """Return the milliseconds from the first byte sent to the last one read, with the connection's own."""
    started = time.perf_counter()
    with socket.create_connection((LOOPBACK, port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        while connection.recv(65536):
            pass
    return 1000 * (time.perf_counter() - started)


def measure(port: int, *, seconds: float, rate: float) -> dict[str, list[float]]:
    """Ask each endpoint in turn, ``rate`` times a second."""
    taken: dict[str, list[float]] = {path: [] for path in PATHS}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in PATHS:
            taken[path].append(ask(port, path))
            time.sleep(1 / rate)
    return taken


def show(name: str, taken: dict[str, list[float]]) -> None:
    """Print a line for each endpoint."""
    for path, times in taken.items():
        print(
            f"{name:<28} {path:<9} p50 {statistics.median(times):6.1f}  "
            f"p99 {_quantile(times, 0.99):6.1f}  max {max(times):6.1f}  of {len(times)}",
            flush=True,
        )


def _quantile(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def fill(broker: redis.Redis, valkey: Valkey, number: int) -> None:
    """Put so many messages into the queue: a stock producer's, each with an id of its own."""
    templates = f"{QUEUE}-template"  # which no worker takes
    with contextlib.closing(Producer(broker_url=valkey.url, backend=valkey.url, queue=templates)) as sender:
        task_id = sender.send({"args": {"sleep_s": 0}}).id
    bodies: list[Any] = broker.lrange(templates, 0, -1)
    for _ in range(number // PUSHED):
        copies = [bodies[0].replace(task_id.encode(), str(uuid.uuid4()).encode()) for _ in range(PUSHED)]
        broker.lpush(QUEUE, *copies)


def run(pool: str, valkey: Valkey, model_url: str, *, seconds: float, rate: float) -> None:
    """Measure one worker: at full speed, then with a main thread that sleeps, then with one that spins."""
    port = free_port()
    stand = Path(tempfile.mkdtemp()) / "stand"
    env = {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": valkey.database(1),
        "FORWARDER_PREDICT_URL": f"{model_url}/predict",
        "FORWARDER_HEALTH_URL": f"{model_url}/readyz",
        "FORWARDER_HTTP_PORT": str(port),
        "FORWARDER_CONCURRENCY": str(SLOTS[pool]),
        "FORWARDER_QUEUES": QUEUE,
        "FORWARDER_LOG_LEVEL": "WARNING",
        "STAND_FILE": str(stand),
    }
    with (
        redis.Redis.from_url(valkey.url) as broker,
        redis.Redis.from_url(valkey.database(1)) as results,
        Worker(pool=pool, env=env, module="tests.integration.standing_worker") as worker,
    ):
        broker.flushall()
        while http_status(port, "/readyz") != 200:
            time.sleep(0.1)
        fill(broker, valkey, MESSAGES)
        time.sleep(2)
        before, started = results.info("commandstats"), time.monotonic()
        show(f"{pool} at full speed", measure(port, seconds=seconds, rate=rate))
        done = _writes(results.info("commandstats")) - _writes(before)
        print(f"{pool}: {done / (time.monotonic() - started):.0f} tasks a second meanwhile", flush=True)
        for how in ("sleeps", "spins"):
            stand.write_text(how)
            os.kill(worker.pid, signal.SIGUSR2)
            time.sleep(1)
            show(f"{pool}, main thread {how}", measure(port, seconds=seconds, rate=rate))
            stand.unlink()
            time.sleep(1)
        worker.kill()


def _writes(stats: dict[str, dict[str, int]]) -> int:
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("set", "setex"))


def main() -> None:
    """Run it on both pools."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=20.0)
    options = parser.parse_args()
    port = free_port()
    echo = Process(name="echo", stop_timeout_s=5.0)
    argv = [sys.executable, "-m", "benchmarks.echo_server", "--port", str(port)]
    with Valkey() as valkey, echo:
        echo.start(Command(argv=argv, env=clean_env(echo.folder) | {"PYTHONPATH": str(CHECKOUT)}))
        echo.wait_until(lambda: http_status(port, "/") == 200, timeout_s=30.0)
        for pool in SLOTS:
            run(pool, valkey, f"http://{LOOPBACK}:{port}", seconds=options.seconds, rate=options.rate)


if __name__ == "__main__":
    main()
