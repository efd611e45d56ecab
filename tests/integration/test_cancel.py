"""Cancelling: a revoked task's call ends, its result says so, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TaskRevokedError

from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, asked, idle, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, Receiver, StartWorker

#: A slot that leaked would be the only one.
ONE_SLOT = {"FORWARDER_CONCURRENCY": "1"}


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_task_that_is_terminated_gives_everything_back(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    running = redis_scene.ready(pool, CONCURRENCY="1")
    for _ in range(3):  # a slot, a connection or a book entry that leaked would show
        result = redis_scene.send(behaviour=HELD)
        model_server.wait_in_flight(1)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE_S)
        wait_until(lambda: idle(model_server))
        wait_until(lambda: redis_scene.held() == 0)
    assert total(redis_scene.send(numbers=[1, 2])) == 3
    assert running.stop() == 0
    assert "handed_back" not in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_task_that_is_terminated_says_so_to_its_sender_and_to_no_hook(
    pool: str, redis_scene: RedisScene, worker: StartWorker, model_server: ModelServer, receiver: Receiver
) -> None:
    worker(pool=pool, env=redis_scene.env | ONE_SLOT | receiver.env).wait_ready()
    result = redis_scene.send(request_id="revoked", behaviour=HELD)
    model_server.wait_in_flight(1)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE_S)
    wait_until(lambda: redis_scene.held() == 0)
    other = redis_scene.send(numbers=[1])
    assert total(other) == 1
    wait_until(lambda: len(receiver.bodies) > 0)
    assert [body["task_id"] for body in receiver.bodies] == [other.id]
    assert asked(model_server, "revoked") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_is_terminated_in_its_hooks_keeps_its_result(
    pool: str, redis_scene: RedisScene, worker: StartWorker, receiver: Receiver
) -> None:
    worker(pool=pool, env=redis_scene.env | ONE_SLOT | receiver.env).wait_ready()
    receiver.hold.set()
    result = redis_scene.send(numbers=[7])
    wait_until(lambda: len(receiver.bodies) == 1)
    redis_scene.sender.app.control.revoke(result.id, terminate=True)
    wait_until(lambda: redis_scene.held() == 0)
    receiver.released.set()
    assert total(result) == 7
    assert total(redis_scene.send(numbers=[8])) == 8


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_expires_while_it_runs_closes_its_connection_and_says_so(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    redis_scene.ready(pool, CONCURRENCY="1")
    # Long enough for a busy machine to begin it.
    expires = datetime.now(UTC) + timedelta(seconds=5)
    result = redis_scene.sender.send({"args": {"behaviour": HELD}}, expires=expires)
    model_server.wait_in_flight(1)
    with pytest.raises(Exception, match="the task expired while it ran"):
        result.get(timeout=PATIENCE_S)
    wait_until(lambda: idle(model_server))
    backend: Any = redis_scene.sender.app.backend
    meta = json.loads(backend.get(backend.get_key_for_task(result.id)))
    assert json.loads(meta["result"]["custom"])["code"] == "expired"
    wait_until(lambda: redis_scene.held() == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_is_revoked_before_it_runs_never_asks_the_server(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    redis_scene.ready(pool, CONCURRENCY="1")
    first = redis_scene.send(numbers=[1], behaviour=HELD)
    model_server.wait_in_flight(1)
    second = redis_scene.send(request_id="revoked")
    heard = redis_scene.sender.app.control.revoke(second.id, reply=True, limit=1, timeout=PATIENCE_S)
    assert heard
    model_server.control(release=True)
    assert total(first) == 1
    with pytest.raises(TaskRevokedError):
        second.get(timeout=PATIENCE_S)
    wait_until(lambda: redis_scene.held() == 0)
    assert asked(model_server, "revoked") == 0
    assert total(redis_scene.send(numbers=[4])) == 4


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A result store of its own, which a test may stop."""
    with Valkey() as made:
        yield made


@pytest.mark.parametrize("pool", POOLS)
def test_a_message_is_not_acked_before_its_revoke_is_stored_and_work_goes_on_meanwhile(
    pool: str, redis_scene: RedisScene, producer: MakeProducer, store: Valkey, model_server: ModelServer
) -> None:
    redis_scene.ready(pool, CONCURRENCY="1", RESULT_BACKEND=store.url)
    sender = producer(broker_url=redis_scene.env["FORWARDER_BROKER_URL"], backend=store.url)
    result = sender.send({"args": {"behaviour": HELD}})
    model_server.wait_in_flight(1)
    os.kill(store.pid, signal.SIGSTOP)
    try:
        # Not result.revoke(): that reads the store first.
        sender.app.control.revoke(result.id, terminate=True)
        wait_until(lambda: idle(model_server))
        time.sleep(1)
        assert redis_scene.held() == 1
        assert sender.app.control.ping(limit=1, timeout=PATIENCE_S)
    finally:
        os.kill(store.pid, signal.SIGCONT)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE_S)
    wait_until(lambda: redis_scene.held() == 0)
    assert total(sender.send({"args": {"numbers": [5]}})) == 5
