"""RabbitMQ as Debian packages it, run without systemd and all on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

from forwarder.testing.processes import (
    LOOPBACK,
    Command,
    Process,
    StartFailed,
    clean_env,
    free_port,
    owns_port,
)
from forwarder.testing.services import NotInstalled, Service

# Debian's own script. The one on the PATH is a wrapper that works for the system's node only.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
ACCOUNT = "rabbitmq"
AMQP_HELLO = b"AMQP\x00\x00\x09\x01"  # protocol header of AMQP 0-9-1, section 4.2.2


class RabbitMQ(Service):
    """A RabbitMQ node with a name, an epmd and a folder of its own; user guest, password guest.

    Started by root it runs as the user rabbitmq, otherwise as ourselves.
    """

    name = "rabbitmq"
    start_timeout_s = 60.0
    stop_timeout_s = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._epmd: Process | None = None
        self._epmd_port = 0

    def start(self) -> None:
        """Start epmd and the node; block until the node speaks AMQP (about 5 s)."""
        try:
            self._start_epmd()
            super().start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the node, then its epmd."""
        with ExitStack() as stack:
            if self._epmd is not None:
                stack.callback(self._epmd.stop)
            super().stop()
        self._epmd = None

    def command(self, folder: Path) -> Command:
        """Return how to start the node; every path it writes is in ``folder``."""
        env = clean_env(folder) | {
            "RABBITMQ_NODENAME": f"rabbit-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            # The distribution port has no address setting of RabbitMQ's own; this is the Erlang kernel's.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "none"),
        }
        return Command(argv=[str(SERVER)], env=env | self._epmd_env, user=service_account())

    def answers(self) -> bool:
        """Return whether it opens an AMQP connection: it listens before it is ready to."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2.0) as connection:
                connection.sendall(AMQP_HELLO)
                return connection.recv(1) == b"\x01"  # a method frame: connection.start
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Return the URL of the default virtual host."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    @property
    def epmd(self) -> Process:
        """Return the running port mapper."""
        if self._epmd is None:
            raise StartFailed("rabbitmq is not started")
        return self._epmd

    @property
    def _epmd_env(self) -> dict[str, str]:
        return {"ERL_EPMD_PORT": str(self._epmd_port), "ERL_EPMD_ADDRESS": LOOPBACK}

    def _start_epmd(self) -> None:
        # The node would start one itself, but as a daemon that nobody stops.
        binary = shutil.which("epmd")
        if binary is None or not SERVER.exists():
            raise NotInstalled("no RabbitMQ: apt-get install rabbitmq-server")
        self._epmd_port = free_port()
        self._epmd = Process(name="epmd")
        env = clean_env(self._epmd.folder) | self._epmd_env
        self._epmd.start(Command(argv=[binary], env=env, user=service_account()))
        self._epmd.wait_until(self._epmd_listens, timeout_s=10.0)

    def _epmd_listens(self) -> bool:
        return owns_port(self.epmd.pid, self._epmd_port)


def service_account() -> str | None:
    """Return the user that a root process starts RabbitMQ as, None for ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(ACCOUNT).pw_name
    except KeyError:
        raise StartFailed(f"RabbitMQ must not run as root and there is no user {ACCOUNT}") from None
