"""The worker on RabbitMQ: what it holds outlives it, its connection and the server, and is done once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery.result import AsyncResult
from kombu import Connection, Queue

from forwarder.testing.producer import Producer
from forwarder.testing.proxy import Proxy
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey

if TYPE_CHECKING:
    from forwarder.testing.worker import Worker
    from tests.integration.conftest import MakeProducer, StartWorker

pytestmark = pytest.mark.timeout(90)

POOLS = ["prefork", "gevent"]
VISIBILITY_TIMEOUT_S = 5
#: Seconds until both sides have noticed a silent connection, and one for two slow cores.
NOTICED_S = VISIBILITY_TIMEOUT_S + 10 + 1
#: An answer that takes 20 s to come, and tells the model server byte by byte whether anybody still reads.
SLOW = {"trickle_head_s": 0.3}
#: Enough to happen during, and short enough to wait for.
SHORT = {"sleep_s": 4}


@dataclass(frozen=True, slots=True)
class Scene:
    """One queue on a RabbitMQ, its workers' settings and a sender."""

    rabbitmq: RabbitMQ
    env: dict[str, str]
    sender: Producer

    def send(self, behaviour: dict[str, Any] | None = None) -> AsyncResult[Any]:
        """Send the one task; without a behaviour the model server's own holds."""
        asked = {} if behaviour is None else {"behaviour": behaviour}
        return self.sender.send({"args": {"id": "task", "numbers": [1], **asked}})

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


def wait_until(probe: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Return the seconds that it took."""
    started = time.monotonic()
    while not probe():
        assert time.monotonic() < started + timeout_s, what
        time.sleep(0.05)
    return time.monotonic() - started


def asked(model_server: ModelServer) -> int:
    return int(model_server.stats()["by_id"].get("task", 0))


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
    result = scene.send(SHORT)
    model_server.wait_in_flight(1)
    ready(worker, pool, scene.env)
    victim.kill()
    wait_until(lambda: asked(model_server) == 2, VISIBILITY_TIMEOUT_S + 10, "taken over")
    assert result.get(timeout=30)["result"]["sum"] == 1
    assert asked(model_server) == 2


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_server_was_killed_and_started_again_the_same_worker_finishes_uncounted(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    running = ready(worker, pool, scene.env | {"FORWARDER_MAX_DELIVERIES": "1"})
    result = scene.send(SHORT)
    model_server.wait_in_flight(1)
    scene.rabbitmq.process.kill()
    running.wait_for_log("at=disconnection")
    scene.rabbitmq.restart()
    assert result.get(timeout=40)["result"]["sum"] == 1
    assert scene.send().get(timeout=20)["result"]["sum"] == 1
    assert running.alive


@pytest.mark.parametrize("pool", POOLS)
def test_after_its_connection_was_cut_the_worker_finishes_uncounted_and_logs_a_few_lines(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    with Proxy(target_port=scene.rabbitmq.port) as proxy:
        running = ready(worker, pool, scene.through(proxy) | {"FORWARDER_MAX_DELIVERIES": "1"})
        result = scene.send(SHORT)
        model_server.wait_in_flight(1)
        proxy.cut()
        running.wait_for_log("at=disconnection")
        proxy.heal()
        assert result.get(timeout=30)["result"]["sum"] == 1
        assert asked(model_server) == 2
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
        model_server.control(behaviour=SLOW)
        result = scene.send()
        model_server.wait_in_flight(1)
        peer = ready(worker, pool, scene.env)
        model_server.control(behaviour={})

        proxy.freeze()
        frozen_s = time.monotonic()
        cut_off.wait_for_log("at=disconnection", timeout_s=NOTICED_S)
        wait_until(lambda: model_server.stats()["in_flight"] == 0, 3, "its copy was cancelled")
        assert result.get(timeout=NOTICED_S - (time.monotonic() - frozen_s))["result"]["sum"] == 1
        assert asked(model_server) == 2

        peer.stop()
        proxy.heal()
        assert scene.send().get(timeout=20)["result"]["sum"] == 1
        assert asked(model_server) == 3
        cut_off.stop()


@pytest.mark.parametrize("pool", POOLS)
def test_a_stopping_worker_hands_a_long_task_back_uncounted(
    pool: str, scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    running = ready(worker, pool, scene.env)
    scene.send(SLOW)
    model_server.wait_in_flight(1)
    assert running.stop() == 0
    [message] = scene.take(scene.sender.queue)
    assert message.headers["x-forwarder-deliveries"] == 0
    assert not message.delivery_info["redelivered"]
    wait_until(lambda: model_server.stats()["in_flight"] == 0, 3, "nothing runs on")


def test_a_task_that_kills_its_process_each_time_ends_as_a_failure_and_one_dead_letter(
    scene: Scene, worker: StartWorker, model_server: ModelServer
) -> None:
    running = ready(worker, "prefork", scene.env | {"FORWARDER_MAX_DELIVERIES": "3"})
    result = scene.send(SLOW)
    for deliveries in (1, 2, 3):
        wait_until(lambda expected=deliveries: asked(model_server) == expected, 20, "another delivery")  # type: ignore[misc]
        [busy] = [pid for pid in running.children() if talks_to(pid, model_server.port)]
        psutil.Process(busy).kill()
    with pytest.raises(Exception, match="delivered 4 times without an outcome") as failure:
        result.get(timeout=20)
    assert type(failure.value).__name__ == "DeadLettered"
    assert running.stop() == 0
    dead = scene.take(f"{scene.sender.queue}.dead")
    assert [letter.headers["x-forwarder-death"]["deliveries"] for letter in dead] == [4]
    assert asked(model_server) == 3
    assert scene.take(scene.sender.queue) == []


def talks_to(pid: int, port: int) -> bool:
    """Return whether a process has a connection to a port."""
    return any(each.raddr[1:] == (port,) for each in psutil.Process(pid).net_connections(kind="tcp"))
