"""A real Flower beside a real worker: it sees the worker and its tasks, and cancels one."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TaskRevokedError

from forwarder.testing.processes import LOOPBACK, Command, clean_env
from forwarder.testing.services import CHECKOUT, ModelServer, Service, Valkey, http_status
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, idle, queue_on, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

#: A marker, in payloads and so in what is derived from them.
SECRET = "hunter2-payload"


class Flower(Service):
    """``celery -A forwarder.app flower`` with the worker's environment."""

    name = "flower"
    start_timeout_s = PATIENCE_S

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__()
        self._env = env

    def command(self, folder: Path) -> Command:
        argv = [sys.executable, "-m", "celery", "-A", "forwarder.app", "flower"]
        options = [f"--port={self.port}", f"--address={LOOPBACK}"]
        own = {"PYTHONPATH": str(CHECKOUT), "FLOWER_UNAUTHENTICATED_API": "true"}
        return Command(argv=[*argv, *options], env={**clean_env(folder), **own, **self._env})

    def answers(self) -> bool:
        return http_status(self.port, "/healthcheck") == http.client.OK

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def call(self, method: str, path: str) -> str:
        """Return the body of an answer, whatever its status."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def workers(self) -> list[dict[str, Any]]:
        """Return what Flower knows of each worker once it has asked them."""
        return list(json.loads(self.call("GET", "/api/workers?refresh=true")).values())

    def state_of(self, task_id: str) -> str | None:
        """Return the state that Flower shows of a task, None while it knows none."""
        text = self.call("GET", f"/api/task/info/{task_id}")
        return str(json.loads(text)["state"]) if text.startswith("{") else None


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_flower_sees_the_worker_and_its_tasks_without_a_payload_and_revokes_one(
    broker: str,
    pool: str,
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    queue_name: str,
) -> None:
    place = queue_on(broker, request, queue_name)
    env = place.env | {"FORWARDER_RESULT_BACKEND": valkey.url, "FORWARDER_QUEUES": queue_name}
    worker(pool=pool, env=env | model_server.env).wait_ready()
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
    with Flower(env) as flower:
        # Flower asks for the events of tasks as well, every few seconds.
        wait_until(lambda: bool(sender.app.control.enable_events(reply=True, limit=1)))
        wait_until(lambda: any("stats" in seen and "registered" in seen for seen in flower.workers()))
        (seen,) = flower.workers()
        assert [queue["name"] for queue in seen["active_queues"]] == [queue_name]
        assert "forwarder.forward" in seen["registered"]

        done = sender.send({"args": {"id": SECRET, "numbers": [1, 2]}})
        failed = sender.send({"cloudpickle": SECRET})
        assert total(done) == 3
        wait_until(lambda: flower.state_of(done.id) == "SUCCESS")
        wait_until(lambda: flower.state_of(failed.id) == "FAILURE")

        held = sender.send({"args": {"id": SECRET, "behaviour": HELD}})
        model_server.wait_in_flight(1)
        wait_until(lambda: flower.state_of(held.id) == "STARTED")
        shown = json.dumps(flower.workers()) + flower.call("GET", f"/task/{held.id}")
        flower.call("POST", f"/api/task/revoke/{held.id}?terminate=true")
        with pytest.raises(TaskRevokedError):
            held.get(timeout=PATIENCE_S)
        wait_until(lambda: idle(model_server))
        wait_until(lambda: flower.state_of(held.id) == "REVOKED")
        shown += flower.call("GET", "/api/tasks")
        assert held.id in shown
        assert SECRET not in shown
        if broker == "redis":  # RabbitMQ is asked by way of its management plugin
            (length,) = json.loads(flower.call("GET", "/api/queues/length"))["active_queues"]
            assert length == {"name": queue_name, "messages": 0}
