"""Stopping while the broker is silent and nobody has noticed: the worker ends in time all the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.settings.coherence import ENDING_S
from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import family
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.proxy import Proxy
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Service, Valkey
from tests.integration.scenes import HELD, POOLS, idle, wait_until

if TYPE_CHECKING:
    from forwarder.testing.worker import Worker
    from tests.integration.conftest import MakeProducer, StartWorker

BROKERS = ["redis", "sqs", "amqp"]
DRAIN_S = 1
TASKS = 5


@dataclass
class Scene:
    """A worker that runs as many tasks as it can, and what silences its broker (Redis: and its results)."""

    running: Worker
    proxy: Proxy
    model_server: ModelServer

    def stop(self, number: int) -> tuple[int, float]:
        """Send the signal; return the exit code and the seconds that it took."""
        started = time.monotonic()
        os.kill(self.running.pid, number)
        return self.running.wait_exit(timeout_s=40), time.monotonic() - started


@pytest.fixture
def settings(request: pytest.FixtureRequest, queue_name: str, valkey: Valkey) -> Iterator[Any]:
    """The service to silence, the worker's settings by way of a proxy, and how to reach it without."""
    broker: str = request.param
    service: Service = request.getfixturevalue({"sqs": "moto", "amqp": "rabbitmq"}.get(broker, "valkey"))
    with Proxy(target_port=service.port) as proxy:
        env = {"FORWARDER_BROKER_URL": proxy.through(service.url), "FORWARDER_RESULT_BACKEND": valkey.url}
        direct: dict[str, Any] = {"broker_url": service.url}
        if isinstance(service, Moto):
            url = aws_resources.create_queue(service.env, queue_name)
            env |= service.env | {
                "AWS_ENDPOINT_URL": proxy.through(service.url),
                "FORWARDER_BROKER_URL": "sqs://",
                "FORWARDER_SQS_QUEUE_URL": proxy.through(url),
            }
            conf = sqs_conf(service.env, queue=queue_name, url=url)
            direct = {"broker_url": sqs_broker_url(service.env), "conf": conf}
        elif not isinstance(service, RabbitMQ):
            env["FORWARDER_RESULT_BACKEND"] = proxy.through(service.url)
        yield proxy, env, direct


@pytest.fixture
def scene(
    settings: Any,
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> Scene:
    proxy, env, direct = settings
    more = {"FORWARDER_CONCURRENCY": str(TASKS), "FORWARDER_DRAIN_TIMEOUT_S": str(DRAIN_S)}
    running = worker(pool=request.node.callspec.params["pool"], env=model_server.env | env | more)
    running.wait_ready()
    sender: Producer = producer(backend=valkey.url, **direct)
    for number in range(TASKS):
        sender.send({"args": {"numbers": [number], "behaviour": HELD}})
    model_server.wait_in_flight(TASKS)
    return Scene(running, proxy, model_server)


@pytest.mark.parametrize("settings", BROKERS, indirect=True)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_worker_whose_broker_went_silent_a_moment_ago_ends_in_time_and_leaves_no_call_behind(
    number: int, pool: str, scene: Scene
) -> None:
    scene.proxy.freeze()
    code, took_s = scene.stop(number)
    assert code == 0
    assert took_s < (DRAIN_S if number == signal.SIGTERM else 0) + ENDING_S
    wait_until(lambda: idle(scene.model_server))
    assert "Timeout (" not in scene.running.log(), "the watchdog's word"


@pytest.mark.parametrize("settings", ["amqp"], indirect=True)
@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_rabbitmq_server_is_no_other_matter_than_a_silent_network(
    pool: str, scene: Scene, rabbitmq: RabbitMQ
) -> None:
    """Its kernel still takes connections and bytes."""
    with ExitStack() as stack:
        for process in family(rabbitmq.pid):
            process.suspend()
            stack.callback(process.resume)
        code, took_s = scene.stop(signal.SIGTERM)
    assert code == 0
    assert took_s < DRAIN_S + ENDING_S
