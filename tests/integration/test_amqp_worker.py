"""The worker on RabbitMQ: what it holds outlives it, its connection and the server, and is done once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery.result import AsyncResult
from kombu import Connection, Queue

from forwarder.testing.producer import Producer
from forwarder.testing.proxy import Proxy
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, asked, idle, total, wait_until

if TYPE_CHECKING:
    from forwarder.testing.worker import Worker
    from tests.integration.conftest import MakeProducer, StartWorker

VISIBILITY_TIMEOUT_S = 5
#: Seconds until both sides have noticed a silent connection, and some for two slow cores.
NOTICED_S = VISIBILITY_TIMEOUT_S + 10 + 5


@dataclass(frozen=True, slots=True)
class Scene:
    """One queue on a RabbitMQ, its workers' settings and a sender."""

    rabbitmq: RabbitMQ
    env: dict[str, str]
    sender: Producer

    def send(self, **args: Any) -> AsyncResult[Any]:
        """Send the one task; without a ``behaviour`` the model server's own holds."""
        return self.sender.send({"args": {"id": "task", "numbers": [1], **args}})

    def through(self, proxy: Proxy) -> dict[str, str]:
        """Return settings for a worker that reaches the server through the proxy."""
        return self.env | {"FORWARDER_BROKER_URL": proxy.through(self.rabbitmq.url)}

    def take(self, queue: str) -> list[Any]:
        """Take what waits in a queue."""
        with Connection(self.rabbitmq.url) as connection:
            channel: Any = connection.channel()
            return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))


@pytest.fixture
def scene(
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    model_server: ModelServer,
    producer: MakeProducer,
    queue_name: str,
    request: pytest.FixtureRequest,
) -> Scene:
    queue_type = getattr(request, "param", "classic")
    env = {
        "FORWARDER_BROKER_URL": rabbitmq.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
        "FORWARDER_DRAIN_TIMEOUT_S": "1",
        "FORWARDER_QUEUE_TYPE": queue_type,
        **model_server.env,
    }
    # A stock producer declares its queue too.
    queue = Queue(queue_name, routing_key=queue_name, queue_arguments={"x-queue-type": queue_type})
    # A server that is killed forgets what it has neither confirmed nor written.
    conf = {"task_queues": [queue], "broker_transport_options": {"confirm_publish": True}}
    return Scene(rabbitmq, env, producer(broker_url=rabbitmq.url, backend=valkey.url, conf=conf))


def ready(worker: StartWorker, pool: str, env: dict[str, str]) -> Worker:
    started = worker(pool=pool, env=env)
    started.wait_ready()
    return started


@pytest.mark.parametrize(
    ("pool", "scene"),
    [("prefork", "classic"), ("gevent", "classic"), ("gevent", "quorum")],
    indirect=["scene"],
)
def test_a_killed_workers_task_is_finished_by_an_idle_peer(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    victim = ready(worker, pool, scene.env)
    result = scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    ready(worker, pool, scene.env)
    victim.kill()
    wait_until(lambda: asked(model_server, "task") == 2, "taken over", VISIBILITY_TIMEOUT_S + 10)
    model_server.control(release=True)
    assert total(result) == 1
    assert asked(model_server, "task") == 2


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_server_was_killed_and_started_again_the_same_worker_finishes_uncounted(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    running = ready(worker, pool, scene.env | {"FORWARDER_MAX_DELIVERIES": "1"})
    result = scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    scene.rabbitmq.process.kill()
    running.wait_for_log("at=disconnection")
    model_server.control(release=True)
    scene.rabbitmq.restart()
    assert total(result) == 1
    assert total(scene.send()) == 1
    assert running.alive


@pytest.mark.parametrize("pool", POOLS)
def test_after_its_connection_was_cut_the_worker_finishes_uncounted_and_logs_a_few_lines(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    with Proxy(target_port=scene.rabbitmq.port) as proxy:
        running = ready(worker, pool, scene.through(proxy) | {"FORWARDER_MAX_DELIVERIES": "1"})
        result = scene.send(behaviour=HELD)
        model_server.wait_in_flight(1)
        proxy.cut()
        running.wait_for_log("at=disconnection")
        model_server.control(release=True)
        proxy.heal()
        assert total(result) == 1
        assert asked(model_server, "task") == 2
        for noise in ("Traceback", "CPendingDeprecationWarning"):
            assert noise not in running.log()
        running.stop()


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_behind_a_silent_connection_lets_go_of_what_a_peer_runs_and_goes_on_when_healed(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    """With confirmations, stock prefork waits for that of its heartbeat event, and looks at nothing else."""
    with Proxy(target_port=scene.rabbitmq.port) as proxy:
        cut_off = ready(worker, pool, scene.through(proxy))
        model_server.control(behaviour=HELD)
        result = scene.send()
        model_server.wait_in_flight(1)
        peer = ready(worker, pool, scene.env)
        model_server.control(behaviour={})

        proxy.freeze()
        frozen_s = time.monotonic()
        cut_off.wait_for_log("at=disconnection", timeout_s=NOTICED_S)
        wait_until(lambda: idle(model_server), "its copy was cancelled", 5)
        left_s = NOTICED_S - (time.monotonic() - frozen_s)
        assert result.get(timeout=max(left_s, 1.0))["result"]["sum"] == 1
        assert asked(model_server, "task") == 2

        peer.stop()
        proxy.heal()
        assert total(scene.send()) == 1
        assert asked(model_server, "task") == 3
        cut_off.stop()


@pytest.mark.parametrize("pool", POOLS)
def test_a_stopping_worker_hands_a_long_task_back_uncounted(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    running = ready(worker, pool, scene.env)
    scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    assert running.stop() == 0
    [message] = scene.take(scene.sender.queue)
    assert message.headers["x-forwarder-deliveries"] == 0
    assert not message.delivery_info["redelivered"]
    wait_until(lambda: idle(model_server), "nothing runs on")


def test_a_worker_that_stops_counts_no_delivery_though_its_prefetch_grew_and_more_tasks_wait(
    scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    slots = {"FORWARDER_CONCURRENCY": "10", "FORWARDER_INFLIGHT_BYTES_MAX": "100000000"}
    running = ready(worker, "gevent", scene.env | slots)
    for _ in range(30):
        scene.send(behaviour=HELD)
    model_server.wait_in_flight(10)
    assert running.stop() == 0
    messages = scene.take(scene.sender.queue)
    assert len(messages) == 30
    assert not any(message.delivery_info["redelivered"] for message in messages)
    assert not any(message.headers.get("x-forwarder-deliveries") for message in messages)


def test_a_task_that_kills_its_process_each_time_ends_as_a_failure_and_one_dead_letter(
    scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    def is_delivery(number: int) -> bool:
        return asked(model_server, "task") == number and not idle(model_server)

    running = ready(worker, "prefork", scene.env | {"FORWARDER_MAX_DELIVERIES": "3"})
    result = scene.send(behaviour=HELD)
    for deliveries in (1, 2, 3):
        wait_until(partial(is_delivery, deliveries), "another delivery")
        [busy] = [pid for pid in running.children() if talks_to(pid, model_server.port)]
        psutil.Process(busy).kill()
    with pytest.raises(Exception, match="delivered 4 times without an outcome") as failure:
        result.get(timeout=PATIENCE_S)
    assert type(failure.value).__name__ == "DeadLettered"
    assert running.stop() == 0
    dead = scene.take(f"{scene.sender.queue}.dead")
    assert [letter.headers["x-forwarder-death"]["deliveries"] for letter in dead] == [4]
    assert asked(model_server, "task") == 3
    assert scene.take(scene.sender.queue) == []


def talks_to(pid: int, port: int) -> bool:
    """Return whether a process has a connection to a port."""
    return any(each.raddr[1:] == (port,) for each in psutil.Process(pid).net_connections(kind="tcp"))
