"""gevent with ``--autoscale MAX,MIN``: slots open by what waits in the queue, and no task loses its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import sqs_broker_url, sqs_conf
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

MOST, LEAST, TASKS = 8, 2, 12


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "sqs"])
def test_slots_open_while_messages_wait_and_never_more_than_max(
    broker: str,
    request: pytest.FixtureRequest,
    valkey: Valkey,
    model_server: ModelServer,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
) -> None:
    env = {
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_AUTOSCALE": f"{MOST},{LEAST}",
        **model_server.env,
    }
    conf = {}
    if broker == "sqs":
        moto: Moto = request.getfixturevalue("moto")
        url = aws_resources.create_queue(moto.env, queue_name)
        broker_url = sqs_broker_url(moto.env)
        env |= moto.env | {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
        conf = sqs_conf(moto.env, queue=queue_name, url=url)
    else:
        service: Valkey | RabbitMQ = request.getfixturevalue("valkey" if broker == "redis" else "rabbitmq")
        broker_url = env["FORWARDER_BROKER_URL"] = service.url
    sender = producer(broker_url=broker_url, backend=valkey.url, conf=conf)
    running = worker(pool="gevent", env=env)
    running.wait_ready()
    results = [
        sender.send({"args": {"id": f"t{number}", "numbers": [3], "behaviour": HELD}})
        for number in range(TASKS)
    ]
    wait_until(lambda: model_server.stats()["in_flight"] == MOST, "the slots did not open")
    log = running.log()
    sizes = [int(size) for size in re.findall(r"slots_changed slots=(\d+)", log)]
    assert sizes == sorted(sizes), "no slot closed while its task ran"
    assert sizes[0] <= 2 * LEAST
    assert sizes[-1] == MOST
    model_server.control(release=True)
    assert [total(result) for result in results] == [3] * TASKS
    assert model_server.stats()["peak"] == MOST
    assert model_server.stats()["requests"] == TASKS
    assert running.stop() == 0
