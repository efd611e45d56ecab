"""gevent with ``--autoscale MAX,MIN``: slots open by what waits in the queue, and no task loses its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, queue_on, total, wait_until

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
    place = queue_on(broker, request, queue_name)
    env |= place.env
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
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
