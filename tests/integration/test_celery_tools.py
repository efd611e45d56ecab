"""Celery's own tools against a real worker: what they tell, what they change, and what nobody may see."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
from kombu import Queue

from forwarder.testing.processes import clean_env
from forwarder.testing.producer import Producer
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, queue_on, total, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import MakeProducer, StartWorker

#: A marker, in payloads and so in what is derived from them.
SECRET = "hunter2-payload"
EVERYWHERE = [(broker, pool) for broker in ("redis", "amqp") for pool in POOLS]


class Scene:
    """A worker that consumes, its stock sender, and remote control of it."""

    def __init__(self, running: Worker, sender: Producer, env: dict[str, str]) -> None:
        """Wait until the worker consumes, and until it hears: a moment later it subscribes."""
        self.running = running
        self.sender = sender
        self.env = env
        running.wait_ready()
        wait_until(self._hears)

    def _hears(self) -> bool:
        replies = self.sender.app.control.ping(limit=1) or []
        self.node = next(iter(replies[0]), "") if replies else ""
        return bool(replies)

    def send(self, **args: Any) -> Any:
        return self.sender.send({"args": {"id": SECRET, "text": SECRET, **args}})

    def inspect(self, command: str, *args: Any) -> Any:
        """Return the one worker's answer to ``inspect``."""
        inspector = self.sender.app.control.inspect(limit=1, timeout=PATIENCE_S)
        (answer,) = getattr(inspector, command)(*args).values()
        return answer

    def control(self, command: str, **arguments: Any) -> Any:
        """Return the one worker's answer to ``control``."""
        replies = self.sender.app.control.broadcast(
            command, arguments=arguments, reply=True, limit=1, timeout=PATIENCE_S
        )
        assert replies, "nobody answered"
        (answer,) = replies[0].values()
        return answer


@pytest.fixture(params=EVERYWHERE, ids="-".join)
def scene(
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    queue_name: str,
) -> Scene:
    broker, pool = request.param
    place = queue_on(broker, request, queue_name)
    env = place.env | model_server.env
    env |= {"FORWARDER_RESULT_BACKEND": valkey.url, "FORWARDER_QUEUES": queue_name}
    running = worker(pool=pool, env=env)
    return Scene(running, producer(broker_url=place.url, backend=valkey.url, conf=place.conf), env)


def test_remote_control_tells_what_a_worker_does_and_never_a_payload(
    scene: Scene, model_server: ModelServer, queue_name: str
) -> None:
    running = scene.send(behaviour=HELD)
    later = scene.sender.send({"args": {"text": SECRET}}, countdown=3600)
    model_server.wait_in_flight(1)
    wait_until(lambda: scene.inspect("scheduled"))
    told = ("active", "reserved", "scheduled", "registered", "active_queues", "stats", "conf", "report")
    answers = {name: scene.inspect(name) for name in told}
    answers["query_task"] = scene.inspect("query_task", [running.id, later.id])
    assert [task["id"] for task in answers["active"]] == [running.id]
    assert [waiting["request"]["id"] for waiting in answers["scheduled"]] == [later.id]
    assert answers["query_task"][running.id][0] == "active"
    assert "forwarder.forward" in answers["registered"]
    assert [queue["name"] for queue in answers["active_queues"]] == [queue_name]
    assert answers["stats"]["pool"]["max-concurrency"] == 2
    assert SECRET not in json.dumps(answers)


@contextmanager
def events_of(scene: Scene) -> Iterator[list[dict[str, Any]]]:
    """Collect the events of tasks, as a monitor does; they are here once the block has begun."""
    events: list[dict[str, Any]] = []
    connection = scene.sender.app.connection()
    receiver = scene.sender.app.events.Receiver(connection, handlers={"*": events.append})
    over = threading.Event()

    def listen() -> None:
        with connection:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):  # nothing came
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        wait_until(lambda: bool(events))  # a heartbeat
        scene.control("enable_events")
        yield events
    finally:
        over.set()
        thread.join()


def test_events_tell_each_task_s_way_and_never_a_payload_or_a_result(
    scene: Scene, model_server: ModelServer
) -> None:
    with events_of(scene) as events:
        good = scene.send(numbers=[1, 2])
        bad = scene.sender.send({"cloudpickle": SECRET})
        revoked = scene.send(behaviour=HELD)
        model_server.wait_in_flight(1)
        revoked.revoke(terminate=True)

        def way(task_id: str) -> list[str]:
            return [event["type"] for event in events if event.get("uuid") == task_id]

        begun = ["task-received", "task-started"]
        wait_until(lambda: way(good.id) == [*begun, "task-succeeded"])
        wait_until(lambda: way(bad.id) == [*begun, "task-failed"])
        wait_until(lambda: way(revoked.id) == [*begun, "task-revoked"])
        assert SECRET not in json.dumps(events)


def test_the_pool_grows_and_shrinks_as_remote_control_asks(scene: Scene, model_server: ModelServer) -> None:
    assert scene.control("pool_grow", n=1) == {"ok": "pool will grow"}
    results = [scene.send(numbers=[number], behaviour=HELD) for number in range(4)]
    model_server.wait_in_flight(3)
    model_server.control(release=True)
    assert [total(result) for result in results] == [0, 1, 2, 3]
    assert scene.control("pool_shrink", n=2) == {"ok": "pool will shrink"}

    def peak() -> int:
        model_server.control(reset=True)
        results = [scene.send(behaviour={"sleep_s": 0.2}) for _ in range(3)]
        assert [total(result) for result in results] == [0, 0, 0]
        return int(model_server.stats()["peak"])

    wait_until(lambda: peak() == 1, "RabbitMQ hears of it a little later")


def test_a_queue_that_remote_control_adds_is_served_like_the_others_until_it_is_cancelled(
    scene: Scene, producer: MakeProducer, queue_name: str
) -> None:
    other = f"{queue_name}-other"
    # On RabbitMQ Celery would declare a classic one, which is refused.
    arguments = {"x-queue-type": "quorum"} if scene.env["FORWARDER_BROKER_URL"].startswith("amqp") else {}
    queues = [Queue(other, routing_key=other, queue_arguments=arguments)]
    elsewhere = producer(
        broker_url=scene.env["FORWARDER_BROKER_URL"],
        backend=scene.env["FORWARDER_RESULT_BACKEND"],
        conf={"task_queues": queues},
    )
    elsewhere.queue = other
    waiting = elsewhere.send({"args": {"numbers": [1, 2]}})
    scene.control("add_consumer", queue=other)
    assert total(waiting) == 3
    assert total(scene.send(numbers=[3])) == 3
    scene.control("cancel_consumer", queue=other)
    wait_until(lambda: other not in [queue["name"] for queue in scene.inspect("active_queues")])
    assert total(scene.send(numbers=[4])) == 4
    assert "Trying to re-establish" not in scene.running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_queue_that_rabbitmq_refuses_is_said_once_and_the_worker_goes_on(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    """Celery declares it anew after each reconnection, for ever; under gevent it stops to consume."""
    env = {"FORWARDER_BROKER_URL": rabbitmq.url, "FORWARDER_RESULT_BACKEND": valkey.url, **model_server.env}
    running = worker(pool=pool, env=env)
    scene = Scene(running, producer(broker_url=rabbitmq.url, backend=valkey.url), env)
    scene.control("add_consumer", queue="amq.reserved")
    running.wait_for_log("queue_not_added")
    assert total(scene.send(numbers=[5])) == 5
    assert running.log().count("queue_not_added") == 1


def test_a_rate_limit_and_its_end_lose_no_task(scene: Scene) -> None:
    assert scene.control("rate_limit", task_name="forwarder.forward", rate_limit="30/m") == {
        "ok": "new rate limit set successfully"
    }
    results = [scene.send(numbers=[number]) for number in range(3)]
    scene.control("rate_limit", task_name="forwarder.forward", rate_limit="0")
    assert [total(result) for result in results] == [0, 1, 2]


def test_a_remote_shutdown_is_the_drain(scene: Scene, model_server: ModelServer) -> None:
    result = scene.send(numbers=[6], behaviour=HELD)
    model_server.wait_in_flight(1)
    scene.sender.app.control.shutdown()
    scene.running.wait_for_log("drain_start")
    model_server.control(release=True)
    assert scene.running.wait_exit() == 0
    assert total(result) == 6


def celery(env: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``celery -A forwarder.app`` as an operator does, with the worker's environment."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "forwarder.app", *arguments],
        env=clean_env(folder) | {"PYTHONPATH": str(CHECKOUT)} | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_command_line_finds_the_worker_by_its_environment(scene: Scene, tmp_path: Path) -> None:
    answered = celery(
        scene.env, tmp_path, "inspect", "--timeout", str(PATIENCE_S), "--destination", scene.node, "ping"
    )
    assert answered.returncode == os.EX_OK, answered.stderr
    assert "1 node online" in answered.stdout


def test_celery_s_own_worker_is_refused_because_it_would_drop_every_task(
    valkey: Valkey, tmp_path: Path
) -> None:
    refused = celery({"FORWARDER_BROKER_URL": valkey.url}, tmp_path, "worker")
    assert refused.returncode == 1
    assert "python -m forwarder" in refused.stderr


@pytest.mark.parametrize("pool", POOLS)
def test_nobody_is_told_a_password_or_a_key(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    password, key = "hunter2-password", "aHVudGVyMi1rZXktaHVudGVyMi1rZXktaHVudA=="
    with Valkey() as guarded:
        with redis.Redis.from_url(guarded.url) as client:
            client.config_set("requirepass", password)
        url = guarded.url.replace("redis://", f"redis://:{password}@")
        env = model_server.env | {
            "FORWARDER_BROKER_URL": url,
            "FORWARDER_RESULT_BACKEND": url,
            "FORWARDER_HOOKS": "callback",
            "FORWARDER_CALLBACK_SECRET": f"whsec_{key}",
        }
        running = worker(pool=pool, env=env)
        scene = Scene(running, producer(broker_url=url, backend=url), env)
        told = json.dumps([scene.inspect(command) for command in ("conf", "report", "stats", "registered")])
        told += celery(env, tmp_path, "report").stdout
        running.stop()
    assert "RedisTransport" in told
    assert password not in told + running.log()
    assert key not in told + running.log()
