"""Cancelling: a revoked task's call ends, its result says so, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TaskRevokedError

from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, Receiver, StartWorker

pytestmark = pytest.mark.timeout(90)

POOLS = ["prefork", "gevent"]
#: An answer that takes 20 s to come, and tells the model server byte by byte whether anybody still reads.
SLOW = {"trickle_head_s": 0.3}


def settings(valkey: Valkey, model_server: ModelServer, **more: str) -> dict[str, str]:
    return {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_CONCURRENCY": "1",
        **model_server.env,
        **more,
    }


def held(sender: Producer, valkey: Valkey) -> int:
    """Return how many messages are in the queue or with a worker."""
    import redis

    with redis.Redis.from_url(valkey.url) as client:
        leases: Any = client.hlen(f"forwarder:{{{sender.queue}}}:unacked")
        waiting: Any = client.llen(sender.queue)
    return int(leases) + int(waiting)


def wait_until(probe: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not probe():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_task_that_is_terminated_gives_everything_back(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    for _ in range(3):  # a slot, a connection or a book entry that leaked would show
        result = sender.send({"args": {"behaviour": SLOW}})
        model_server.wait_in_flight(1)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
        assert wait_until(lambda: model_server.stats()["in_flight"] == 0)
        assert wait_until(lambda: held(sender, valkey) == 0)
    assert sender.send({"args": {"numbers": [1, 2]}}).get(timeout=20)["result"]["sum"] == 3
    assert running.stop() == 0
    assert "handed_back" not in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_task_that_is_terminated_says_so_to_its_sender_and_to_no_hook(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    receiver: Receiver,
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server) | receiver.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"id": "revoked", "behaviour": SLOW}})
    model_server.wait_in_flight(1)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=10)
    assert wait_until(lambda: held(sender, valkey) == 0)
    other = sender.send({"args": {"numbers": [1]}})
    assert other.get(timeout=20)["result"]["sum"] == 1
    assert wait_until(lambda: len(receiver.bodies) > 0)
    assert [body["task_id"] for body in receiver.bodies] == [other.id]
    assert model_server.stats()["by_id"]["revoked"] == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_is_terminated_in_its_hooks_keeps_its_result(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    receiver: Receiver,
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server) | receiver.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    receiver.hold.set()
    result = sender.send({"args": {"numbers": [7]}})
    assert wait_until(lambda: len(receiver.bodies) == 1, 20)
    sender.app.control.revoke(result.id, terminate=True)
    assert wait_until(lambda: held(sender, valkey) == 0)
    receiver.released.set()
    assert result.get(timeout=5)["result"]["sum"] == 7
    other = sender.send({"args": {"numbers": [8]}})
    assert other.get(timeout=20)["result"]["sum"] == 8


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_expires_while_it_runs_closes_its_connection_and_says_so(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    worker(pool=pool, env=settings(valkey, model_server)).wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"behaviour": SLOW}}, expires=datetime.now(UTC) + timedelta(seconds=2))
    model_server.wait_in_flight(1)
    with pytest.raises(Exception, match="the task expired while it ran"):
        result.get(timeout=10)
    assert wait_until(lambda: model_server.stats()["in_flight"] == 0)
    backend: Any = sender.app.backend
    meta = json.loads(backend.get(backend.get_key_for_task(result.id)))
    assert json.loads(meta["result"]["custom"])["code"] == "expired"
    assert wait_until(lambda: held(sender, valkey) == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_is_revoked_before_it_runs_never_asks_the_server(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    first = sender.send({"args": {"behaviour": {"sleep_s": 2}}})
    model_server.wait_in_flight(1)
    second = sender.send({"args": {"id": "revoked"}})
    second.revoke()
    assert first.get(timeout=20)["status_code"] == 200
    with pytest.raises(TaskRevokedError):
        second.get(timeout=10)
    assert wait_until(lambda: held(sender, valkey) == 0)
    assert "revoked" not in model_server.stats()["by_id"]
    assert sender.send({"args": {"numbers": [4]}}).get(timeout=20)["result"]["sum"] == 4


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A result store of its own, which a test may stop."""
    with Valkey() as made:
        yield made


@pytest.mark.parametrize("pool", POOLS)
def test_a_message_is_not_acked_before_its_revoke_is_stored_and_work_goes_on_meanwhile(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    store: Valkey,
    model_server: ModelServer,
) -> None:
    env = settings(valkey, model_server, FORWARDER_RESULT_BACKEND=store.url)
    running = worker(pool=pool, env=env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=store.url)
    result = sender.send({"args": {"behaviour": SLOW}})
    model_server.wait_in_flight(1)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        # Not result.revoke(): that reads the store first.
        sender.app.control.revoke(result.id, terminate=True)
        assert wait_until(lambda: model_server.stats()["in_flight"] == 0)
        time.sleep(1)
        assert held(sender, valkey) == 1
        assert sender.app.control.ping(timeout=5)
    finally:
        os.kill(store.pid, signal.SIGCONT)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    assert wait_until(lambda: held(sender, valkey) == 0)
    assert sender.send({"args": {"numbers": [5]}}).get(timeout=20)["result"]["sum"] == 5
