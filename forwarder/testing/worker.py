"""The worker as a subprocess, the way it runs in production."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from forwarder.testing.processes import LOG_NAME, Command, Process, clean_env, family
from forwarder.testing.services import CHECKOUT

READY = " ready."  # Celery's log line is "<node> ready."


class Worker:
    """One ``python -m forwarder`` with an environment of its own.

    ``env`` is all that it inherits beside PATH: nothing of the developer's
    machine leaks in. ``args`` go onto the command line. ``ddtrace`` launches it
    through ``ddtrace-run``. ``module`` is run instead of ``forwarder``, to compare.
    """

    def __init__(
        self,
        *,
        pool: str,
        env: Mapping[str, str],
        args: Sequence[str] = (),
        ddtrace: bool = False,
        module: str = "forwarder",
        stop_timeout_s: float = 40.0,
    ) -> None:
        self._process = Process(name="worker", stop_timeout_s=stop_timeout_s)
        own = {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", "CELERY_WORKER_POOL": pool}
        argv = [sys.executable, "-m", module, *args]
        if ddtrace:
            argv.insert(0, str(Path(sys.executable).parent / "ddtrace-run"))
            own["DD_TRACE_AGENT_URL"] = "http://127.0.0.1:1"  # nobody there: nothing leaves the machine
            own["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
            own["DD_REMOTE_CONFIGURATION_ENABLED"] = "false"
        self._command = Command(argv=argv, env=clean_env(self._process.folder) | own | dict(env))

    def __repr__(self) -> str:
        return f"<Worker {self._process!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it. Does not wait: see ``wait_ready``."""
        self._process.start(self._command)

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        """Block until it consumes. Raises StartFailed with the end of its log."""
        self.wait_for_log(READY, timeout_s)

    def wait_for_log(self, text: str, timeout_s: float = 60.0) -> None:
        """Block until the log contains ``text``. Raises StartFailed if it ends or takes too long."""
        self._process.wait_until(lambda: text in self.log(), timeout_s=timeout_s)

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """Block until it ends by itself and return its exit code. Raises StartFailed on timeout."""
        return self._process.wait_exit(timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """Return the main process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether the main process runs."""
        return self._process.alive

    def children(self) -> list[int]:
        """Return the ids of its descendants (prefork's children among them)."""
        return [process.pid for process in family(self.pid)[1:]]

    @property
    def log_path(self) -> Path:
        """Return the file that it logs into."""
        return self._process.folder / LOG_NAME

    def log(self) -> str:
        """Return everything it has logged so far."""
        return self._process.log()

    def stop(self) -> int:
        """Send SIGTERM, wait for its drain, and return its exit code. The log stays readable."""
        return self._process.terminate()

    def kill(self) -> None:
        """End the main process at once, as a lost machine would."""
        self._process.kill()

    def close(self) -> None:
        """Stop it and remove its log."""
        self._process.stop()
