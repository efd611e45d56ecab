"""The workers of the comparison, and how each is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forwarder.testing.processes import Command, Process
from forwarder.testing.services import CHECKOUT

#: Rivals that can't share our environment (arq wants an older redis-py) have this one, made by scripts/bench.
RIVALS = CHECKOUT / ".venv-bench/bin"
OWN = Path(sys.executable).parent
#: A prefork child for each task in flight: 256 of them would measure the machine's memory.
PREFORK_MAX = 50
#: Seconds for a floor.
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One worker; ``command`` may hold ``{n}``, the tasks in flight. ``ready`` ends its start, in its log."""

    name: str
    sender: str
    command: tuple[str, ...]
    ready: str
    bin: Path = OWN
    env: Mapping[str, str] = field(default_factory=dict)
    in_flight_max: int = 1024

    def start(self, where: Mapping[str, str], *, in_flight: int, cpu: int | None) -> Process:
        """Start it on one processor and block until it consumes. Raises StartFailed."""
        program, *arguments = (word.format(n=in_flight) for word in self.command)
        pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
        process = Process(name=self.name.replace(" ", "-"), stop_timeout_s=20.0)
        env = {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **where, **self.env}
        env |= {"FORWARDER_CONCURRENCY": str(in_flight), "BENCH_IN_FLIGHT": str(in_flight)}
        process.start(Command(argv=[*pinned, str(self.bin / program), *arguments], env=env))
        process.wait_until(lambda: self.ready in process.log(), timeout_s=90.0)
        return process


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """An HTTP client in a loop, without a queue: what no worker with that client can go below."""

    name: str
    client: str
    in_flight_max: int = 1024

    def figures(
        self, where: Mapping[str, str], *, in_flight: int, cpu: int | None, load: Sequence[int]
    ) -> str:
        """Run it on one processor, for so many tasks and rounds of a second; return its figures as JSON."""
        pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
        argv = [
            *pinned,
            sys.executable,
            "-m",
            "benchmarks.floor",
            self.client,
            str(in_flight),
            *map(str, load),
        ]
        done = subprocess.run(
            argv, env=dict(where), cwd=CHECKOUT, check=True, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        return done.stdout


def _celery(name: str, pool: str, *, tuned: bool = False, in_flight_max: int = 1024) -> System:
    options = ("-P", pool, "-c", "{n}", "-l", "INFO" if not tuned else "WARNING")
    lean = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair") if tuned else ()
    return System(
        name=name,
        sender="celery_rival",
        command=("celery", "-A", "benchmarks.rivals.celery_rival", "worker", "-Q", "bench", *options, *lean),
        ready=" ready." if not tuned else "celery@",
        env={"BENCH_TUNED": "1"} if tuned else {},
        in_flight_max=in_flight_max,
    )


def _forwarder(pool: str, in_flight_max: int = 1024) -> System:
    return System(
        name=f"forwarder {pool}",
        sender="forwarder_rival",
        command=("python", "-m", "forwarder"),
        ready=" ready.",
        env={"CELERY_WORKER_POOL": pool, "FORWARDER_QUEUES": "bench"},
        in_flight_max=in_flight_max,
    )


FLOORS = (
    Floor(name="floor: our client", client="forwarder"),
    Floor(name="floor: http.client", client="http.client"),
)
SYSTEMS = (
    _forwarder("gevent"),
    _forwarder("prefork", PREFORK_MAX),
    _celery("celery gevent", "gevent"),
    _celery("celery prefork", "prefork", in_flight_max=PREFORK_MAX),
    _celery("celery threads", "threads"),
    _celery("celery tuned", "gevent", tuned=True),
    System(
        name="dramatiq gevent",
        sender="dramatiq_rival",
        command=(
            "dramatiq-gevent", "benchmarks.rivals.dramatiq_rival", "--processes", "1", "--threads", "{n}",
        ),
        ready="Worker process is ready",
        bin=RIVALS,
    ),
    System(
        name="taskiq",
        sender="taskiq_rival",
        command=(
            "taskiq", "worker", "benchmarks.rivals.taskiq_rival:broker",
            "--workers", "1", "--max-async-tasks", "{n}",
        ),
        ready="Listening started",
        bin=RIVALS,
    ),
    System(
        name="arq",
        sender="arq_rival",
        command=("arq", "benchmarks.rivals.arq_rival.WorkerSettings"),
        ready="Starting worker",
        bin=RIVALS,
    ),
)  # fmt: skip
