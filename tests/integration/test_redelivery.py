"""A task whose outcome is committed is never run again, whoever delivers it once more and why."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, Receiver, StartWorker

VISIBILITY_S = 3


def task(**behaviour: Any) -> dict[str, Any]:
    return {"args": {"id": uuid.uuid4().hex, "numbers": [1, 2], "behaviour": behaviour}}


def error_code(sender: Producer, task_id: str) -> str:
    backend: Any = sender.app.backend
    meta = json.loads(backend.get(backend.get_key_for_task(task_id)))
    assert meta["status"] == "FAILURE"
    return str(json.loads(meta["result"]["custom"])["code"])


@pytest.fixture(params=["redis", "sqs", "amqp"])
def route(
    request: pytest.FixtureRequest, queue_name: str, valkey: Valkey, producer: MakeProducer
) -> tuple[dict[str, str], Producer]:
    """Return a worker's settings for each broker, results in Redis, and a producer for it."""
    env = {
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_VISIBILITY_TIMEOUT_S": str(VISIBILITY_S),
    }
    if request.param == "sqs":
        moto: Moto = request.getfixturevalue("moto")
        url = aws_resources.create_queue(moto.env, queue_name)
        env |= moto.env | {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
        conf = sqs_conf(moto.env, queue=queue_name, url=url)
        return env, producer(broker_url=sqs_broker_url(moto.env), backend=valkey.url, conf=conf)
    if request.param == "amqp":
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        return env | {"FORWARDER_BROKER_URL": rabbitmq.url}, producer(
            broker_url=rabbitmq.url, backend=valkey.url
        )
    return env | {"FORWARDER_BROKER_URL": valkey.url}, producer(broker_url=valkey.url, backend=valkey.url)


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_dies_after_the_commit_leaves_only_the_hooks_to_be_done(
    pool: str,
    route: tuple[dict[str, str], Producer],
    worker: StartWorker,
    model_server: ModelServer,
    receiver: Receiver,
) -> None:
    """Killed in its hook: the result is stored, the message is not acked."""
    settings, sender = route
    env = settings | model_server.env | receiver.env
    first = worker(pool=pool, env=env)
    first.wait_ready()
    receiver.hold.set()
    result = sender.send(task())
    assert total(result) == 3
    wait_until(lambda: len(receiver.bodies) == 1)
    first.kill()
    receiver.hold.clear()
    second = worker(pool=pool, env=env)
    second.wait_for_log(f"task_already_done task_id={result.id}")
    wait_until(lambda: len(receiver.bodies) == 2)
    assert receiver.bodies[0] == receiver.bodies[1]
    assert model_server.stats()["requests"] == 1
    assert total(result) == 3


@pytest.mark.parametrize("pool", POOLS)
def test_a_stop_that_cuts_the_hooks_off_leaves_them_to_the_next_worker(
    pool: str,
    route: tuple[dict[str, str], Producer],
    worker: StartWorker,
    model_server: ModelServer,
    receiver: Receiver,
) -> None:
    """Handed back uncounted, a message still tells that it was delivered before."""
    settings, sender = route
    env = settings | model_server.env | receiver.env
    env |= {"FORWARDER_DRAIN_TIMEOUT_S": "2", "FORWARDER_MAX_DELIVERIES": "1"}
    first = worker(pool=pool, env=env)
    first.wait_ready()
    receiver.hold.set()
    result = sender.send(task())
    assert total(result) == 3
    wait_until(lambda: len(receiver.bodies) == 1)
    assert first.stop() == 0
    assert "handed_back number=1" in first.log()
    receiver.hold.clear()
    second = worker(pool=pool, env=env)
    second.wait_for_log(f"task_already_done task_id={result.id}")
    wait_until(lambda: len(receiver.bodies) == 2)
    assert receiver.bodies[0] == receiver.bodies[1]
    assert model_server.stats()["requests"] == 1
    assert total(result) == 3


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_dies_before_the_commit_leaves_the_task_to_another(
    pool: str,
    route: tuple[dict[str, str], Producer],
    worker: StartWorker,
    model_server: ModelServer,
    receiver: Receiver,
) -> None:
    settings, sender = route
    env = settings | model_server.env | receiver.env
    first = worker(pool=pool, env=env)
    first.wait_ready()
    result = sender.send(task(**HELD))
    model_server.wait_in_flight(1)
    first.kill()
    model_server.control(release=True)
    worker(pool=pool, env=env)
    assert total(result) == 3
    wait_until(lambda: len(receiver.bodies) == 1)
    assert model_server.stats()["requests"] == 2


@pytest.mark.parametrize("pool", POOLS)
def test_a_clients_second_message_with_the_same_id_is_acked_and_costs_nothing(
    pool: str, redis_scene: RedisScene, worker: StartWorker, model_server: ModelServer, receiver: Receiver
) -> None:
    running = worker(pool=pool, env=redis_scene.env | receiver.env)
    running.wait_ready()
    sender = redis_scene.sender
    payload = task()
    result = sender.send(payload)
    assert total(result) == 3
    for _ in range(3):
        sender.send({"args": {"numbers": [5]}}, task_id=result.id)
    wait_until(lambda: running.log().count(f"task_already_done task_id={result.id}") == 3)
    assert model_server.stats()["requests"] == 1
    assert total(sender.result(result.id)) == 3
    wait_until(lambda: len(receiver.bodies) == 1)
    running.stop()
    assert len(receiver.bodies) == 1


#: None of these would have ended by itself half a minute after it began.
ENDLESS: list[dict[str, Any]] = [HELD, {"trickle_s": 0.5}, {"busy": 99, "retry_after": 50}]


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_expires_ends_there_and_then(pool: str, redis_scene: RedisScene) -> None:
    redis_scene.ready(pool, CONCURRENCY=str(len(ENDLESS)))
    sender = redis_scene.sender
    started = time.monotonic()
    expires = datetime.now(UTC) + timedelta(seconds=3)
    results = [sender.send(task(**behaviour), expires=expires) for behaviour in ENDLESS]
    for result in results:
        with pytest.raises(Exception, match="expired"):
            result.get(timeout=PATIENCE_S)
        assert error_code(sender, result.id) == "expired"
    assert 2.5 < time.monotonic() - started < 30
