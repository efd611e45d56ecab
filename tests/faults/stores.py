"""Each result store as the harness needs it: the worker's settings, how it goes away, who watches it."""

from __future__ import annotations

import contextlib
import signal
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import psutil
import redis

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.ledger import Ledger
from forwarder.testing.processes import family
from forwarder.testing.proxy import Proxy
from forwarder.testing.services import Service
from tests.faults.brokers import DurableValkey
from tests.faults.watches import RedisWatch, ResultWatch, S3Watch


class Store(ABC):
    """One result store that a lane of the harness owns."""

    kind: ClassVar[str]
    service: Service

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the server; ``stack`` stops it."""
        stack.enter_context(self.service)

    @abstractmethod
    def clear(self) -> None:
        """Make it work, with no results in it."""

    @abstractmethod
    def worker_env(self) -> Mapping[str, str]:
        """Return the worker's settings."""

    @abstractmethod
    def watch(self, ledger: Ledger) -> ResultWatch:
        """Return what writes each result into the ledger."""

    @abstractmethod
    def kill(self) -> None:
        """Let it be gone: every connection breaks, and new ones are refused."""

    @abstractmethod
    def revive(self) -> None:
        """Let it come back with all that it had. Blocks until it answers."""


class RedisStore(Store):
    """Valkey."""

    kind = "redis"

    def __init__(self) -> None:
        self.service: DurableValkey = DurableValkey()

    def clear(self) -> None:
        with redis.Redis(host="127.0.0.1", port=self.service.port, socket_timeout=5.0) as client:
            client.flushall()

    def worker_env(self) -> Mapping[str, str]:
        return {"FORWARDER_RESULT_BACKEND": self.service.url}

    def watch(self, ledger: Ledger) -> ResultWatch:
        return RedisWatch(port=self.service.port, ledger=ledger)

    def kill(self) -> None:
        self.service.process.kill()

    def revive(self) -> None:
        self.service.restart()


class S3Store(Store):
    """S3 of a Moto that is not the broker's.

    It keeps everything in memory, so it is cut off from the workers where a Valkey is killed.
    """

    kind = "s3"

    def __init__(self) -> None:
        self.service: Moto = Moto()
        self._link: Proxy
        self._bucket = ""

    def start(self, stack: contextlib.ExitStack) -> None:
        super().start(stack)
        self._link = stack.enter_context(Proxy(target_port=self.service.port))

    def clear(self) -> None:
        self._link.heal()
        self._bucket = f"results-{uuid.uuid4().hex[:10]}"
        aws_resources.create_bucket(self.service.env, self._bucket)

    def worker_env(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self._link.through(self.service.url),
            "FORWARDER_RESULT_BACKEND": f"s3://{self._bucket}/results/",
        }

    def watch(self, ledger: Ledger) -> ResultWatch:
        client = aws_resources.client(self.service.env, "s3")
        return S3Watch(client=client, bucket=self._bucket, ledger=ledger)

    def kill(self) -> None:
        self._link.cut()

    def revive(self) -> None:
        self._link.heal()


STORES: Mapping[str, type[Store]] = {kind.kind: kind for kind in (RedisStore, S3Store)}


@contextlib.contextmanager
def frozen(service: Service) -> Iterator[None]:
    """SIGSTOP a server and all its processes for as long as the block runs."""
    stopped = family(service.pid)
    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
