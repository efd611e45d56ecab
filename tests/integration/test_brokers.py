"""A stock producer's tasks over every broker and result store that make sense together."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.aws import ExistingCloud, LocalStack, Moto
from forwarder.testing.producer import Producer, s3_conf, sqs_broker_url, sqs_conf
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.redis_leases.peer import own_keys
from tests.integration.scenes import PATIENCE_S, POOLS

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

pytestmark = pytest.mark.measured  # every broker and store, a stock task's way from end to end
Cloud = Moto | LocalStack | ExistingCloud
TASKS = 30
LIMITS = {"FORWARDER_CONCURRENCY": "4", "FORWARDER_RETRY_SLOT_S": "1"}


@dataclass
class Route:
    """Where tasks and results travel: the worker's settings and the producer's."""

    env: dict[str, str] = field(default_factory=dict)
    broker_url: str = ""
    backend: str = ""
    conf: dict[str, Any] = field(default_factory=dict)

    def over_url(self, url: str) -> None:
        self.broker_url = self.env["FORWARDER_BROKER_URL"] = url

    def over_sqs(self, cloud: Cloud, queue: str) -> None:
        url = aws_resources.create_queue(cloud.env, queue)
        self.env |= cloud.env | {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
        self.broker_url = sqs_broker_url(cloud.env)
        self.conf |= sqs_conf(cloud.env, queue=queue, url=url)

    def results_in_url(self, url: str) -> None:
        self.backend = self.env["FORWARDER_RESULT_BACKEND"] = url

    def results_in_s3(self, cloud: Cloud) -> str:
        bucket = f"results-{uuid.uuid4().hex[:8]}"
        aws_resources.create_bucket(cloud.env, bucket)
        self.env |= cloud.env | {"FORWARDER_RESULT_BACKEND": f"s3://{bucket}/tmp/celery/"}
        self.backend = "s3://"
        self.conf |= s3_conf(cloud.env, bucket=bucket, prefix="tmp/celery/")
        return bucket


@pytest.fixture
def tasks_are_done(
    worker: StartWorker, producer: MakeProducer, model_server: ModelServer
) -> Callable[[Route, str], Producer]:
    """Run a worker on the route, send tasks with a stock producer, check every result and the ack."""

    def check(route: Route, pool: str) -> Producer:
        running = worker(pool=pool, env=route.env | model_server.env | LIMITS)
        running.wait_ready()
        sender = producer(broker_url=route.broker_url, backend=route.backend, conf=route.conf)
        results = [sender.send({"args": {"id": f"t{n}", "numbers": [n, n]}}) for n in range(TASKS)]
        for number, result in enumerate(results):
            value = result.get(timeout=PATIENCE_S)
            assert value["result"]["sum"] == 2 * number
            assert value["status_code"] == 200
            assert result.state == "SUCCESS"
        assert model_server.stats()["peak"] <= int(LIMITS["FORWARDER_CONCURRENCY"])
        failed = sender.send([1])
        with pytest.raises(Exception, match="must be a JSON object"):
            failed.get(timeout=PATIENCE_S)
        assert failed.state == "FAILURE"
        assert set(model_server.stats()["by_id"].values()) == {1}
        # Its slot's budget is a second, so the task goes back to the queue once.
        busy = {"id": "busy", "numbers": [1], "behaviour": {"busy": 1, "retry_after": 1}}
        assert sender.send({"args": busy}, priority=3).get(timeout=PATIENCE_S)["status_code"] == 200
        assert "action=go_back" in running.log()
        assert model_server.stats()["by_id"]["busy"] == 2
        assert running.stop() == 0
        return sender

    return check


@pytest.mark.parametrize("pool", POOLS)
def test_redis_with_results_in_redis(
    pool: str, valkey: Valkey, tasks_are_done: Callable[[Route, str], Producer]
) -> None:
    route = Route()
    route.over_url(valkey.url)
    route.results_in_url(valkey.url)
    sender = tasks_are_done(route, pool)
    backend: Any = sender.app.backend
    client = backend.client
    assert client.llen(sender.queue) == 0
    assert own_keys(client, sender.queue) == {}


@pytest.mark.parametrize("pool", POOLS)
def test_redis_with_results_in_s3(
    pool: str, valkey: Valkey, moto: Moto, tasks_are_done: Callable[[Route, str], Producer]
) -> None:
    route = Route()
    route.over_url(valkey.url)
    bucket = route.results_in_s3(moto)
    tasks_are_done(route, pool)
    s3 = aws_resources.client(moto.env, "s3")
    held = s3.list_objects_v2(Bucket=bucket, Prefix="tmp/celery/celery-task-meta-")["Contents"]
    assert len(held) == TASKS + 2  # the failed one and the one that went back
    head = s3.head_object(Bucket=bucket, Key=held[0]["Key"], ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("cloud", "store"), [("localstack", "redis"), ("localstack", "s3"), ("moto", "s3")])
def test_sqs(
    pool: str,
    store: str,
    cloud: str,
    request: pytest.FixtureRequest,
    queue_name: str,
    valkey: Valkey,
    tasks_are_done: Callable[[Route, str], Producer],
) -> None:
    stack: Cloud = request.getfixturevalue(cloud)
    route = Route()
    route.over_sqs(stack, queue_name)
    if store == "s3":
        route.results_in_s3(stack)
    else:
        route.results_in_url(valkey.url)
    before = aws_resources.client(stack.env, "sqs").list_queues().get("QueueUrls", [])
    tasks_are_done(route, pool)
    sqs = aws_resources.client(stack.env, "sqs")
    assert sqs.list_queues().get("QueueUrls", []) == before, "the worker must never create a queue"
    depth = sqs.get_queue_attributes(
        QueueUrl=route.env["FORWARDER_SQS_QUEUE_URL"],
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )["Attributes"]
    assert set(depth.values()) == {"0"}


def test_rabbitmq_with_results_in_s3(
    rabbitmq: RabbitMQ, moto: Moto, tasks_are_done: Callable[[Route, str], Producer]
) -> None:
    route = Route()
    route.over_url(rabbitmq.url)
    route.results_in_s3(moto)
    tasks_are_done(route, "gevent")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("made_by", ["worker", "operator"])
def test_rabbitmq(
    pool: str,
    queue_type: str,
    made_by: str,
    queue_name: str,
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    tasks_are_done: Callable[[Route, str], Producer],
) -> None:
    """A queue that exists is taken as it is, also one with arguments that the worker would not choose."""
    from kombu import Connection, Queue

    arguments: dict[str, Any] = {"x-queue-type": queue_type}
    if made_by == "operator" and queue_type == "classic":
        arguments |= {"x-max-priority": 5}
    queue = Queue(queue_name, routing_key=queue_name, queue_arguments=arguments)
    route = Route()
    route.over_url(rabbitmq.url)
    route.results_in_url(valkey.url)
    if made_by == "operator":
        with Connection(rabbitmq.url) as connection:
            queue(connection.default_channel).declare()
    else:
        route.env["FORWARDER_QUEUE_TYPE"] = queue_type
    # A stock producer declares its queue too, so it must be told what it is.
    route.conf["task_queues"] = [queue] if made_by == "operator" or queue_type == "quorum" else None
    tasks_are_done(route, pool)
    with Connection(rabbitmq.url) as connection:
        left: Any = queue(connection.default_channel).queue_declare(passive=True)
        assert left.message_count == 0
