"""On each broker a prefork pool that grows takes as many messages as it has children, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, queue_on, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

MAX, MIN = 4, 1
TASKS = 12


@pytest.mark.parametrize("broker", ["redis", "amqp", "sqs"])
def test_a_pool_that_grows_runs_as_many_tasks_as_it_has_children(
    broker: str,
    request: pytest.FixtureRequest,
    queue_name: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    place = queue_on(broker, request, queue_name)
    env = place.env | model_server.env | {"FORWARDER_RESULT_BACKEND": valkey.url}
    running = worker(pool="prefork", env=env, args=["--autoscale", f"{MAX},{MIN}"])
    running.wait_ready()
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)

    first = [sender.send({"args": {"behaviour": {"sleep_s": 0.5}}}) for _ in range(TASKS)]
    for result in first:
        result.get(timeout=PATIENCE_S)
    wait_until(lambda: f"size={MAX}" in running.log(), running.log())
    held = [sender.send({"args": {"behaviour": HELD}}) for _ in range(TASKS)]
    wait_until(lambda: model_server.stats()["in_flight"] == MAX, "not all children have a task")
    model_server.control(release=True)
    for result in held:
        result.get(timeout=PATIENCE_S)
    assert model_server.stats()["peak"] == MAX
