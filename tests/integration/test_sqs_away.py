"""SQS is away for a while: the worker comes back by itself, and no task runs in two places."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from celery.result import AsyncResult

from forwarder.settings.coherence import ENDING_S
from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.proxy import Proxy
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, asked, idle, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

LEASE_S = 6


@dataclass
class Scene:
    """A queue that the worker reaches through a proxy, and its producer without."""

    sqs: Any
    url: str
    proxy: Proxy
    env: dict[str, str]
    producer: Producer
    model_server: ModelServer

    def left(self) -> int:
        """Return how many messages wait or are in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        return sum(int(number) for number in answer["Attributes"].values())

    def send(self, **args: Any) -> AsyncResult[Any]:
        """Send the one task; without a ``behaviour`` the model server's own holds."""
        return self.producer.send({"args": {"id": "one", "numbers": [1, 2], **args}})


@pytest.fixture
def scene(
    moto: Moto, valkey: Valkey, model_server: ModelServer, queue_name: str, producer: MakeProducer
) -> Iterator[Scene]:
    url = aws_resources.create_queue(moto.env, queue_name)
    sender = producer(
        broker_url=sqs_broker_url(moto.env),
        backend=valkey.url,
        conf=sqs_conf(moto.env, queue=queue_name, url=url),
    )
    with Proxy(target_port=moto.port) as proxy:
        env = moto.env | model_server.env
        env |= {
            "AWS_ENDPOINT_URL": proxy.through(moto.url),
            "FORWARDER_BROKER_URL": "sqs://",
            "FORWARDER_SQS_QUEUE_URL": proxy.through(url),
            "FORWARDER_RESULT_BACKEND": valkey.url,
            "FORWARDER_VISIBILITY_TIMEOUT_S": str(LEASE_S),
            "FORWARDER_DRAIN_TIMEOUT_S": "1",
            # SQS executes and counts, after a freeze, the receives that the worker has given up.
            "FORWARDER_MAX_DELIVERIES": "100",
        }
        sqs = aws_resources.client(moto.env, "sqs")
        yield Scene(sqs, url, proxy, env, sender, model_server)


FAULTS = ["cut", "freeze"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_ack_that_can_not_be_sent_is_sent_when_sqs_is_back_under_the_same_lease(
    fault: str, pool: str, scene: Scene, worker: StartWorker
) -> None:
    running = worker(pool=pool, env=scene.env | {"FORWARDER_VISIBILITY_TIMEOUT_S": "30"})
    running.wait_ready()
    result = scene.send(behaviour=HELD)
    scene.model_server.wait_in_flight(1)
    getattr(scene.proxy, fault)()
    scene.model_server.control(release=True)
    assert total(result) == 3
    time.sleep(2)
    assert scene.left() == 1
    scene.proxy.heal()
    wait_until(lambda: scene.left() == 0, "acked before the lease ends", 25)
    assert asked(scene.model_server, "one") == 1
    # It consumes again, by itself. A poll that nobody listens to any more may take the message for one lease.
    assert scene.send().get(timeout=30 + PATIENCE_S)["status_code"] == 200


@pytest.mark.parametrize("pool", POOLS)
def test_an_ack_whose_lease_ended_meanwhile_is_made_good_by_the_redelivery_without_another_call(
    pool: str, scene: Scene, worker: StartWorker
) -> None:
    running = worker(pool=pool, env=scene.env)
    running.wait_ready()
    result = scene.send(behaviour=HELD)
    scene.model_server.wait_in_flight(1)
    scene.proxy.cut()
    scene.model_server.control(release=True)
    assert total(result) == 3
    time.sleep(LEASE_S)
    scene.proxy.heal()
    wait_until(lambda: scene.left() == 0)
    assert asked(scene.model_server, "one") == 1


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lease_that_ends_while_sqs_is_away_cancels_its_task_which_runs_again_elsewhere(
    fault: str, pool: str, scene: Scene, worker: StartWorker
) -> None:
    running = worker(pool=pool, env=scene.env)
    running.wait_ready()
    scene.model_server.control(behaviour=HELD)
    result = scene.send()
    scene.model_server.wait_in_flight(1)
    getattr(scene.proxy, fault)()
    # By a round of the keeper and one call that hangs later than it ended.
    wait_until(lambda: idle(scene.model_server), "cancelled", LEASE_S + 9 + 5)
    running.wait_for_log(f"lease_lost task_id={result.id}")
    assert result.state == "PENDING"
    scene.model_server.control(behaviour={})
    scene.proxy.heal()
    assert total(result) == 3
    wait_until(lambda: scene.left() == 0)
    stats = scene.model_server.stats()
    assert (stats["by_id"], stats["peak"]) == ({"one": 2}, 1)


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_is_stopped_while_sqs_is_away_ends_in_time(
    pool: str, scene: Scene, worker: StartWorker
) -> None:
    running = worker(pool=pool, env=scene.env)
    running.wait_ready()
    scene.send(behaviour=HELD)
    scene.model_server.wait_in_flight(1)
    scene.proxy.freeze()
    started = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - started < 1 + ENDING_S, "the drain, and what the settings allow after it"
