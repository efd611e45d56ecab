"""One worker over Redis: what a task costs it, how fast it is, and what it holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.systems import System
from forwarder.demo.measure import MIB, memory
from forwarder.testing.processes import Command, Process, clean_env, family
from forwarder.testing.services import CHECKOUT, Service, Valkey

#: Seconds of paced load for the latencies.
PACED_S = 5.0
#: Of the model server, in the phase that fills the worker.
HELD_S = 1.0
#: Seconds for a worker's last acks after its last result.
SETTLING_S = 0.3


class EchoServer(Service):
    """``benchmarks.echo_server`` in a process of its own."""

    name = "echo-server"

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        argv = [sys.executable, "-m", "benchmarks.echo_server", "--port", str(self.port)]
        return Command(argv=argv, env=clean_env(folder) | {"PYTHONPATH": str(CHECKOUT)})

    def answers(self) -> bool:
        """Return whether it serves."""
        try:
            return "peak" in self.stats()
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Return where it is."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, int]:
        """Return its figures; the peak begins anew."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/stats")
            figures: dict[str, int] = json.load(connection.getresponse())
            return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one worker. ``*_0s`` and ``*_1s``: with a model server that takes no time, or a second.

    ``ideal_1s`` is the share of the tasks a second that so many slots could do.
    Latencies are from sending a task to its stored result, at half of ``tasks_per_s_0s``.
    """

    cpu_ms_0s: float
    tasks_per_s_0s: float
    p50_ms: float
    p99_ms: float
    cpu_ms_1s: float
    ideal_1s: float
    rss_mib: float
    unique_mib: float
    processes: int


class Stored:
    """When each result came: Redis tells of every key that is written."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=None)  # it waits for events
        self._client.config_set("notify-keyspace-events", "E$l")
        self._events: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._at: dict[str, float] = {}
        database = url.rsplit("/", 1)[1]
        self._events.psubscribe(f"__keyevent@{database}__:set", f"__keyevent@{database}__:lpush")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, redis.RedisError):  # the server has ended
            while True:
                event = self._events.get_message(timeout=None)
                if event is not None:
                    self._at.setdefault(event["data"].decode(), time.time())

    def wait(self, keys: Sequence[str], timeout_s: float) -> list[float]:
        """Return when each of these results was stored. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        missing = set(keys)
        while missing:
            missing.difference_update(tuple(self._at))
            if missing and time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} of {len(keys)} results did not come")
            time.sleep(0.02)
        return [self._at[key] for key in keys]

    def forget(self) -> None:
        """Drop what came so far."""
        self._at.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The services that all workers share, and the processor that is the worker's alone."""

    valkey: Valkey
    echo: EchoServer
    stored: Stored
    cpu: int | None

    @property
    def where(self) -> dict[str, str]:
        """Return the settings that lead every worker to them."""
        broker, results, predict = (
            self.valkey.database(0),
            self.valkey.database(1),
            f"{self.echo.url}/predict",
        )
        return {
            "BENCH_BROKER_URL": broker,
            "BENCH_RESULTS_URL": results,
            "BENCH_PREDICT_URL": predict,
            "FORWARDER_BROKER_URL": broker,
            "FORWARDER_RESULT_BACKEND": results,
            "FORWARDER_PREDICT_URL": predict,
            "FORWARDER_HEALTH_URL": f"{self.echo.url}/readyz",
        }

    @contextmanager
    def worker(self, system: System, in_flight: int) -> Iterator[Process]:
        """Run a worker on empty databases."""
        redis.Redis.from_url(self.valkey.database(0)).flushall()
        process = system.start(
            self.where | clean_env(Path("/nonexistent")), in_flight=in_flight, cpu=self.cpu
        )
        try:
            yield process
        finally:
            process.stop()

    def send(
        self, system: System, tasks: int, *, sleep_s: float = 0.0, rate: float = 0.0
    ) -> dict[str, float]:
        """Send tasks; return when each was sent, by the key of its result."""
        argv = [str(system.bin / "python"), "-m", f"benchmarks.rivals.{system.sender}", "send"]
        env = clean_env(Path("/nonexistent")) | self.where
        done = subprocess.run(
            [*argv, str(tasks), str(sleep_s), str(rate)],
            env=env,
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
        )
        return dict(json.loads(done.stdout))

    def backlog(
        self, system: System, worker: Process, tasks: int, *, sleep_s: float = 0.0
    ) -> tuple[float, float]:
        """Let the worker do tasks that all wait already; return its CPU seconds and the seconds it took."""
        self.signal(worker, signal.SIGSTOP)  # the sender's speed is not part of the figures
        keys = list(self.send(system, tasks, sleep_s=sleep_s))
        before_s, started = cpu_s(worker.pid), time.time()
        self.signal(worker, signal.SIGCONT)
        ended = max(self.stored.wait(keys, 60.0 + tasks * 0.1))
        time.sleep(SETTLING_S)
        return cpu_s(worker.pid) - before_s, ended - started

    @staticmethod
    def signal(worker: Process, number: int) -> None:
        """Send a signal to all of a worker's processes."""
        for process in family(worker.pid):
            with contextlib.suppress(Exception):
                process.send_signal(number)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that the process and its living descendants have used."""
    times = [process.cpu_times() for process in family(pid)]
    return sum(each.user + each.system for each in times)


def measure(
    bench: Bench, system: System, *, in_flight: int, tasks: int, rounds_1s: int, paced_s: float = PACED_S
) -> Figures:
    """Run one worker through all phases: warm up, no inference time, paced, a second each."""
    with bench.worker(system, in_flight) as worker:
        bench.stored.wait(list(bench.send(system, 2 * in_flight)), 60.0)
        used_s, took_s = bench.backlog(system, worker, tasks)
        rate = tasks / took_s
        sent = bench.send(system, max(2, int(paced_s * rate / 2)), rate=rate / 2)
        stored = bench.stored.wait(list(sent), 60.0)
        added_ms = [1000 * (at - since) for at, since in zip(stored, sent.values(), strict=True)]
        percentiles = statistics.quantiles(added_ms, n=100)
        held = rounds_1s * in_flight
        used_1s_s, took_1s_s = bench.backlog(system, worker, held, sleep_s=HELD_S) if held else (0.0, 1.0)
        full = memory(worker.pid)
        bench.stored.forget()
    return Figures(
        cpu_ms_0s=1000 * used_s / tasks,
        tasks_per_s_0s=rate,
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        cpu_ms_1s=1000 * used_1s_s / max(1, held),
        ideal_1s=rounds_1s * HELD_S / took_1s_s,
        rss_mib=full.rss_bytes / MIB,
        unique_mib=full.unique_bytes / MIB,
        processes=full.processes,
    )
