"""One worker over Redis: what a task costs it, how fast it is, and what it holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.steady import steady_share
from benchmarks.stored import Stored
from benchmarks.systems import System
from forwarder.demo.measure import MIB, memory
from forwarder.testing.processes import Command, Process, clean_env, family
from forwarder.testing.services import CHECKOUT, Service, Valkey

#: Seconds of paced load for the latencies.
PACED_S = 4.0
#: Of the model server, in the phase that fills the worker.
HELD_S = 1.0
#: Tasks before the first figure: what is loaded and connected once is not part of it.
WARM_UP_TASKS = 200
#: Seconds for a worker's last acks after its last result.
SETTLING_S = 0.3
#: A worker that is slower than this in the phase of a second is not waited for: its share is known by then.
CUT_SHARE, CUT_S = 0.75, 3.0
#: Of the latencies.
PERCENTILES = 100


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

    def stats(self) -> dict[str, float]:
        """Return its figures; the peak begins anew."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/stats")
            figures: dict[str, float] = json.load(connection.getresponse())
            return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one worker. ``*_0s`` and ``*_1s``: with a model server that takes no time, or a second.

    ``ideal_1s`` is the share of the tasks a second that so many slots could do
    (:func:`benchmarks.steady.steady_share`). Latencies run from when the message is in the
    queue to when its result is stored, with a model server that takes no time: all of it is
    added. They are taken at ``paced_per_s``, which is half of ``tasks_per_s_0s`` unless the
    sender could not keep up. None is what was not measured.
    """

    cpu_ms_0s: float
    tasks_per_s_0s: float
    paced_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms_1s: float | None = None
    ideal_1s: float | None = None
    rss_mib: float | None = None
    unique_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A backlog: the worker's CPU seconds, when it was let go, and when each result was stored."""

    cpu_s: float
    started: float
    times: Sequence[float]


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
        """Send tasks; return when each was in the queue, by the key of its result."""
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
        self, system: System, worker: Process, tasks: int, *, sleep_s: float = 0.0, cut_s: float | None = None
    ) -> Done:
        """Let the worker do tasks that all wait already. Raises TimeoutError, unless ``cut_s`` ends it."""
        self.signal(worker, signal.SIGSTOP)  # the sender's speed is not part of the figures
        keys = list(self.send(system, tasks, sleep_s=sleep_s))
        before_s, started = cpu_s(worker.pid), time.time()
        self.signal(worker, signal.SIGCONT)
        if cut_s is None:
            times = self.stored.wait(keys, 60.0 + tasks * 0.1)
            time.sleep(SETTLING_S)
        else:
            times = self.stored.those(keys, cut_s)
        return Done(cpu_s=cpu_s(worker.pid) - before_s, started=started, times=times)

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
    bench: Bench, system: System, *, in_flight: int, tasks: int, rounds_1s: int, paced_s: float
) -> Figures:
    """Run one worker through all phases: warm up, no inference time, paced, a second each."""
    with bench.worker(system, in_flight) as worker:
        try:
            bench.stored.wait(list(bench.send(system, WARM_UP_TASKS)), 60.0)
            done = bench.backlog(system, worker, tasks)
            rate = tasks / (max(done.times) - done.started)
            added = paced(bench, system, rate=rate / 2, seconds=paced_s) if paced_s else {}
            second = a_second_each(bench, system, worker, in_flight, rounds_1s) if rounds_1s else {}
            held = memory(worker.pid)
        finally:
            bench.stored.forget()
    return Figures(
        cpu_ms_0s=1000 * done.cpu_s / tasks,
        tasks_per_s_0s=rate,
        rss_mib=held.rss_bytes / MIB,
        unique_mib=held.unique_bytes / MIB,
        **added,
        **second,
    )


def paced(bench: Bench, system: System, *, rate: float, seconds: float) -> dict[str, float]:
    """Send at so many tasks a second; return the added latencies and the rate that there was."""
    sent = bench.send(system, max(2, int(rate * seconds)), rate=rate)
    stored = bench.stored.wait(list(sent), 60.0)
    # A worker may be done before the sender is told that Redis has the message.
    added_ms = [max(0.0, 1000 * (at - since)) for at, since in zip(stored, sent.values(), strict=True)]
    percentiles = statistics.quantiles(added_ms, n=PERCENTILES)
    first, *_, last = sent.values()
    per_s = (len(sent) - 1) / (last - first)
    return {"paced_per_s": per_s, "p50_ms": percentiles[49], "p99_ms": percentiles[98]}


def a_second_each(
    bench: Bench, system: System, worker: Process, in_flight: int, rounds: int
) -> dict[str, float | None]:
    """Fill every slot for rounds of a second; return the CPU time a task and the share of the ideal."""
    held = rounds * in_flight
    cut_s = rounds * HELD_S / CUT_SHARE + CUT_S
    done = bench.backlog(system, worker, held, sleep_s=HELD_S, cut_s=cut_s)
    share = steady_share(done.times, tasks=held, slots=in_flight, held_s=HELD_S)
    return {"cpu_ms_1s": 1000 * done.cpu_s / max(1, len(done.times)), "ideal_1s": share}
