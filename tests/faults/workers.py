"""The workers of one scenario, and the libfaketime that some run under."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from forwarder.testing.processes import family
from forwarder.testing.worker import Worker

READY_S = 60.0
#: Where Debian and Ubuntu, Fedora, and Homebrew put it.
FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib64/faketime/libfaketime.so.1")


class Crew:
    """The workers on one queue: ``module`` is what they run. Leaving the context ends them all."""

    def __init__(self, *, module: str, pool: str, env: Mapping[str, str], stop_timeout_s: float) -> None:
        self._module = module
        self._pool = pool
        self._env = env
        self._stop_timeout_s = stop_timeout_s
        self._stack = contextlib.ExitStack()
        self.workers: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self.workers:  # all at once: each may take its time
            if worker.alive:
                os.kill(worker.pid, signal.SIGTERM)
        self._stack.close()

    def hire(self, number: int = 1, env: Mapping[str, str] | None = None) -> None:
        """Start workers and block until they consume. Raises StartFailed."""
        new = [
            Worker(
                module=self._module,
                pool=self._pool,
                env={**self._env, **(env or {})},
                stop_timeout_s=self._stop_timeout_s,
            )
            for _ in range(number)
        ]
        for worker in new:
            self._stack.enter_context(worker)
            self.workers.append(worker)
        for worker in new:
            worker.wait_ready(READY_S)

    def alive(self) -> list[Worker]:
        """Return the workers whose main process runs."""
        return [worker for worker in self.workers if worker.alive]

    def owner(self, port: int) -> psutil.Process | None:
        """Return the process that connects from a local TCP port, None when it is gone."""
        for worker in self.alive():
            for process in family(worker.pid):
                with contextlib.suppress(psutil.Error):
                    if any(c.laddr.port == port for c in process.net_connections(kind="tcp")):
                        return process
        return None

    def logs(self) -> str:
        """Return what all have logged."""
        return "\n".join(f"---- {worker!r}\n{worker.log()}" for worker in self.workers)


def faketime_library() -> Path | None:
    """Return libfaketime, None where this machine has none."""
    for pattern in FAKETIME:
        for found in Path("/").glob(pattern.lstrip("/")):
            return found
    return None


def clock_env(offset_s: int) -> Mapping[str, str]:
    """Return what makes a program's wall clock wrong by so many seconds; the monotonic one stays right."""
    return {
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME": f"{offset_s:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
