"""A lease that a living worker lost is forgiven by whoever gets the task next; a task's own fault is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import family
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.proxy import Proxy
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import HELD, POOLS, asked, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

LEASE_S = 4
MAX_DELIVERIES = 2
#: One more than would be needed to be put aside, and one more than would be forgiven by chance.
LOSSES = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """Two workers of one queue, each behind a proxy of its own; ``fault`` is what the proxies can do."""

    sender: Producer
    store: redis.Redis
    model_server: ModelServer
    proxies: list[Proxy]
    settings: list[dict[str, str]]
    fault: str

    def start(self, worker: StartWorker, pool: str) -> list[Worker]:
        """Start both and wait until they consume."""
        workers = [worker(pool=pool, env=env) for env in self.settings]
        for started in workers:
            started.wait_ready()
        return workers

    def holder(self, workers: list[Worker]) -> int:
        """Wait until one of them asks the model server, and return which."""
        self.model_server.wait_in_flight(1)
        wait_until(lambda: any(map(self._asks, workers)), "nobody holds the task")
        return next(place for place, worker in enumerate(workers) if self._asks(worker))

    def pardoned(self, task_id: str) -> int:
        """Return how many pardons stand beside the result."""
        found: Any = self.store.get(f"celery-task-meta-{task_id}-pardons")
        return int(found or 0)

    def _asks(self, worker: Worker) -> bool:
        port = self.model_server.port
        for process in family(worker.pid):
            with contextlib.suppress(psutil.Error):  # a child that has just ended
                for connection in process.net_connections(kind="tcp"):
                    if connection.raddr[1:] == (port,) and connection.status == psutil.CONN_ESTABLISHED:
                        return True
        return False


@pytest.fixture(params=["amqp", "sqs"])
def pair(
    request: pytest.FixtureRequest,
    queue_name: str,
    valkey: Valkey,
    model_server: ModelServer,
    producer: MakeProducer,
) -> Iterator[Pair]:
    """RabbitMQ with connections that are cut, and SQS with a network that is silent."""
    common = model_server.env | {
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_VISIBILITY_TIMEOUT_S": str(LEASE_S),
        "FORWARDER_MAX_DELIVERIES": str(MAX_DELIVERIES),
        "FORWARDER_CONCURRENCY": "1",
        "FORWARDER_DRAIN_TIMEOUT_S": "1",
    }
    with ExitStack() as stack:
        store = stack.enter_context(redis.Redis.from_url(valkey.url))
        if request.param == "amqp":
            rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
            proxies = [stack.enter_context(Proxy(target_port=rabbitmq.port)) for _ in range(2)]
            settings = [common | {"FORWARDER_BROKER_URL": proxy.through(rabbitmq.url)} for proxy in proxies]
            sender = producer(broker_url=rabbitmq.url, backend=valkey.url)
            yield Pair(sender, store, model_server, proxies, settings, "cut")
        else:
            moto: Moto = request.getfixturevalue("moto")
            url = aws_resources.create_queue(moto.env, queue_name)
            proxies = [stack.enter_context(Proxy(target_port=moto.port)) for _ in range(2)]
            settings = [
                common
                | moto.env
                | {
                    "AWS_ENDPOINT_URL": proxy.through(moto.url),
                    "FORWARDER_BROKER_URL": "sqs://",
                    "FORWARDER_SQS_QUEUE_URL": proxy.through(url),
                }
                for proxy in proxies
            ]
            conf = sqs_conf(moto.env, queue=queue_name, url=url)
            sender = producer(broker_url=sqs_broker_url(moto.env), backend=valkey.url, conf=conf)
            yield Pair(sender, store, model_server, proxies, settings, "freeze")


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_whose_workers_are_cut_off_by_turns_is_not_put_aside(
    pool: str, pair: Pair, worker: StartWorker, model_server: ModelServer
) -> None:
    workers = pair.start(worker, pool)
    result = pair.sender.send({"args": {"id": "task", "numbers": [1, 2], "behaviour": HELD}})
    for loss in range(1, LOSSES + 1):
        proxy = pair.proxies[pair.holder(workers)]
        getattr(proxy, pair.fault)()
        wait_until(lambda n=loss: pair.pardoned(result.id) == n, f"loss {loss} is pardoned")  # type: ignore[misc]
        wait_until(lambda n=loss: asked(model_server, "task") == n + 1, f"taken over after loss {loss}")  # type: ignore[misc]
        proxy.heal()
    model_server.control(release=True)
    assert total(result) == 3
    assert asked(model_server, "task") == LOSSES + 1
    assert (
        0
        < pair.store.ttl(f"celery-task-meta-{result.id}-pardons")
        <= pair.store.ttl(f"celery-task-meta-{result.id}")
    )


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_whose_workers_die_is_put_aside_after_as_many_deliveries_as_ever(
    pool: str, pair: Pair, worker: StartWorker, model_server: ModelServer
) -> None:
    workers = pair.start(worker, pool)
    result = pair.sender.send({"args": {"id": "task", "numbers": [1, 2], "behaviour": HELD}})
    for death in range(1, MAX_DELIVERIES + 1):
        workers.pop(pair.holder(workers)).kill()
        workers.append(worker(pool=pool, env=pair.settings[0]))
        if death < MAX_DELIVERIES:
            wait_until(lambda n=death: asked(model_server, "task") == n + 1, "taken over")  # type: ignore[misc]
    with pytest.raises(Exception, match=f"delivered {MAX_DELIVERIES + 1} times without an outcome"):
        result.get(timeout=60)
    assert pair.pardoned(result.id) == 0
    assert asked(model_server, "task") == MAX_DELIVERIES
