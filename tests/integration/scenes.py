"""What the scenes of these tests have in common: a held task, a queue on Redis, and patience.

No test relies on how long a task or a start takes: a task is held until the test lets it go on,
and what must come is waited for with a patience that only a broken worker uses up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery.result import AsyncResult

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

if TYPE_CHECKING:
    from tests.integration.conftest import StartWorker

POOLS = ["prefork", "gevent"]
#: An answer that comes once the test says ``model_server.control(release=True)``; the model server
#: tells at once (``in_flight``) that nobody waits for it any more.
HELD = {"hold": True}
#: Seconds to wait for what must come, where the time is not the point.
PATIENCE_S = 60.0


def wait_until(probe: Callable[[], bool], what: str = "not in time", timeout_s: float = PATIENCE_S) -> None:
    """Block until the probe holds; after ``timeout_s`` fail with ``what``."""
    deadline = time.monotonic() + timeout_s
    while not probe():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def total(result: AsyncResult[Any]) -> int:
    """Wait for a task's answer and return its sum."""
    return int(result.get(timeout=PATIENCE_S)["result"]["sum"])


def idle(model_server: ModelServer) -> bool:
    """Return whether the model server works for nobody."""
    return bool(model_server.stats()["in_flight"] == 0)


def asked(model_server: ModelServer, request_id: str) -> int:
    """Return how often the model server was asked for this id."""
    return int(model_server.stats()["by_id"].get(request_id, 0))


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A queue on one broker: the worker's settings for it, and a stock producer's URL and configuration."""

    env: dict[str, str]
    url: str
    conf: dict[str, Any]


@contextmanager
def served(server: HTTPServer) -> Iterator[None]:
    """Let a server of the test's own answer, and close it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def queue_on(broker: str, request: pytest.FixtureRequest, queue_name: str) -> QueuePlace:
    """Return where the queue is on ``redis``, ``amqp`` or ``sqs``, all started; on SQS it is created."""
    if broker == "sqs":
        moto: Moto = request.getfixturevalue("moto")
        url = aws_resources.create_queue(moto.env, queue_name)
        env = moto.env | {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
        return QueuePlace(env, sqs_broker_url(moto.env), sqs_conf(moto.env, queue=queue_name, url=url))
    service: Valkey | RabbitMQ = request.getfixturevalue("valkey" if broker == "redis" else "rabbitmq")
    return QueuePlace({"FORWARDER_BROKER_URL": service.url}, service.url, {})


@dataclass(frozen=True, slots=True)
class RedisScene:
    """One queue on Redis, results in Redis too: its workers and its sender."""

    env: dict[str, str]
    broker: redis.Redis
    sender: Producer
    worker: StartWorker

    def start(self, pool: str, *, ddtrace: bool = False, **settings: str) -> Worker:
        """Start a worker with these settings (``DRAIN_TIMEOUT_S="2"``); does not wait for it."""
        own = {f"FORWARDER_{name}": value for name, value in settings.items()}
        return self.worker(pool=pool, env=self.env | own, ddtrace=ddtrace)

    def ready(self, pool: str, *, ddtrace: bool = False, **settings: str) -> Worker:
        """Start a worker and wait until it consumes."""
        started = self.start(pool, ddtrace=ddtrace, **settings)
        started.wait_ready()
        return started

    def send(self, *, request_id: str = "task", **args: Any) -> AsyncResult[Any]:
        """Send a task with these arguments for the model server (``numbers``, ``behaviour``)."""
        return self.sender.send({"args": {"id": request_id, **args}})

    def queued(self) -> int:
        """Return how many messages wait in the queue."""
        return int(self.broker.llen(self.sender.queue))

    def held(self) -> int:
        """Return how many messages wait, are with a worker or in the dead letters."""
        queue = self.sender.queue
        leased = int(self.broker.hlen(f"forwarder:{{{queue}}}:unacked"))
        return self.queued() + leased + int(self.broker.llen(f"{queue}.dead"))
