"""Processes that tests and the demo start, and that never outlive them.

A process gets its own process group, a folder of its own and a log in it.
Leaving the context stops it; if the parent is killed first, a guard does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

LOOPBACK = "127.0.0.1"
LOG_NAME = "process.log"

# Waits for the end of its input. The parent writes a line once the process has been stopped
# properly; an end without that line means that the parent was killed, so the guard does its work.
# A death signal (prctl) would not do: it is sent when the parent's *thread* ends, and only to one process.
GUARD = 'read -r stopped || { kill -s KILL -- "-$1"; rm -rf -- "$2"; }'

INHERITED = ("PATH", "LANG")


class StartFailed(Exception):
    """A process ended, or did not become ready in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run: a complete environment (nothing is inherited) and, for root, the user to become."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None


def clean_env(folder: Path) -> dict[str, str]:
    """Return the little that a program needs of ours; its home and temporary files are in ``folder``."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {"HOME": str(folder), "TMPDIR": str(folder)}


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def owns_port(pid: int, port: int) -> bool:
    """Return whether the process or one of its descendants listens on the TCP port.

    False as well when the process is gone or belongs to another user and we are not root.
    """
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for process in family(pid)
        for connection in _connections(process)
    )


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_gone(processes: Sequence[psutil.Process], *, timeout_s: float) -> bool:
    """Block until none of the processes runs any more; return False when the time is over first.

    A zombie counts as gone: it holds nothing, and whose child it is will collect it.
    """
    deadline = time.monotonic() + timeout_s
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections(kind="tcp")
    except psutil.Error:
        return []


class Process:
    """One running subprocess.

    ``folder`` is created on start and removed on stop, the log with it.
    """

    def __init__(self, *, name: str, stop_timeout_s: float = 10.0) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"forwarder-{name}-"))
        self._stop_timeout_s = stop_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "not started" if self._child is None else f"pid {self._child.pid}"
        return f"<{type(self).__name__} {self.name} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the process id. Raises StartFailed before the start."""
        return self._started().pid

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._child is not None and self._child.poll() is None

    def log(self) -> str:
        """Return everything that the process has written so far (standard output and error)."""
        path = self.folder / LOG_NAME
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, command: Command) -> None:
        """Start the command in a session of its own. Does not wait for it to be ready."""
        if command.user is not None:
            account = pwd.getpwnam(command.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        with (self.folder / LOG_NAME).open("ab") as log:
            self._child = subprocess.Popen(
                command.argv,
                env=dict(command.env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=command.user,
                group=None if command.user is None else account.pw_gid,
                extra_groups=None if command.user is None else [],
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._child.pid), str(self.folder)],
            env={"PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def restart(self, command: Command) -> None:
        """End the process at once and start again in its folder, with the files that it left there."""
        self.kill()
        self._dismiss_guard()
        self.start(command)

    def wait_until(self, probe: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> None:
        """Block until the probe holds. Raises StartFailed when the process ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not probe():
            if not self.alive:
                raise StartFailed(f"{self.name} ended early:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready in {timeout_s:g} s:\n{self._log_end()}")
            time.sleep(interval_s)

    def wait_exit(self, *, timeout_s: float) -> int:
        """Block until the process ends and return its exit code. Raises StartFailed if it does not."""
        try:
            return self._started().wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StartFailed(f"{self.name} still ran after {timeout_s:g} s:\n{self._log_end()}") from None

    def kill(self) -> None:
        """End the process and its whole group at once, with SIGKILL."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait_exit(timeout_s=10.0)

    def terminate(self) -> int:
        """End the process with SIGTERM, after the bounded wait with SIGKILL, and return its exit code.

        Its descendants are gone too when this returns. The folder, and so the log, stays until ``stop``.
        """
        if self._child is None:
            return 0
        descendants = family(self._child.pid)[1:]
        if self.alive:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(self._stop_timeout_s)
        if self.alive:
            os.killpg(self._child.pid, signal.SIGKILL)
        if not wait_gone(descendants, timeout_s=1.0):
            for process in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            wait_gone(descendants, timeout_s=5.0)
        return self._child.wait()

    def stop(self) -> int:
        """Terminate the process, remove its folder and return its exit code. May be called again.

        If this is interrupted the guard stays, and cleans up when we end.
        """
        exit_code = self.terminate()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._dismiss_guard()
        return exit_code

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise StartFailed(f"{self.name} has not been started")
        return self._child

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"stopped\n")
            self._guard = None

    def _log_end(self, lines: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-lines:])
