"""A Redis server that answers, but refuses writes: the worker waits calmly and goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
import redis

from forwarder.testing.processes import LOOPBACK, free_port
from forwarder.testing.services import ModelServer, Valkey, http_status
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S, POOLS, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker


@pytest.fixture
def broker() -> Iterator[Valkey]:
    with Valkey() as own:
        yield own


@pytest.fixture
def server(broker: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker.url) as client:
        yield client


@pytest.fixture
def http_port() -> int:
    return free_port()


@pytest.fixture(params=POOLS)
def started(
    request: pytest.FixtureRequest,
    worker: StartWorker,
    broker: Valkey,
    valkey: Valkey,
    model_server: ModelServer,
    http_port: int,
) -> Worker:
    env = {"FORWARDER_BROKER_URL": broker.url, "FORWARDER_RESULT_BACKEND": valkey.url}
    http = {"FORWARDER_HTTP_PORT": str(http_port), "FORWARDER_HTTP_HOST": LOOPBACK}
    return worker(pool=request.param, env=model_server.env | env | http)


def assert_serves(producer: MakeProducer, broker: Valkey, valkey: Valkey, *, within_s: float) -> None:
    sent = producer(broker_url=broker.url, backend=valkey.url).send({"args": {"id": "a", "numbers": [1]}})
    assert sent.get(timeout=within_s)["status_code"] == 200


def test_a_worker_stays_calm_while_its_server_has_no_memory_and_goes_on_once_it_has(
    started: Worker,
    server: redis.Redis,
    broker: Valkey,
    valkey: Valkey,
    producer: MakeProducer,
    http_port: int,
) -> None:
    started.wait_ready()
    wait_until(lambda: http_status(http_port, "/readyz") == HTTPStatus.OK, "ready")
    before = len(started.log().splitlines())
    server.config_set("maxmemory", 1)
    started.wait_for_log("broker_refuses")
    until_s = time.monotonic() + 4.0
    while time.monotonic() < until_s:
        assert http_status(http_port, "/readyz") == HTTPStatus.SERVICE_UNAVAILABLE
        time.sleep(0.2)
    lines = started.log().splitlines()[before:]
    assert len(lines) <= 4, lines
    assert not [line for line in lines if "Traceback" in line or "CRITICAL" in line]
    server.config_set("maxmemory", 0)
    assert_serves(producer, broker, valkey, within_s=15.0)
    started.wait_for_log("broker_accepts_again")
    wait_until(lambda: http_status(http_port, "/readyz") == HTTPStatus.OK, "ready again")


def test_a_worker_whose_server_became_a_replica_connects_anew_until_it_finds_the_primary(
    started: Worker, server: redis.Redis, broker: Valkey, valkey: Valkey, producer: MakeProducer
) -> None:
    started.wait_ready()
    server.replicaof("127.0.0.1", "1")
    started.wait_for_log("the Redis server refuses writes: ReadOnlyError")
    server.replicaof("NO", "ONE")
    assert_serves(producer, broker, valkey, within_s=PATIENCE_S)
    assert "Frequent restarts" not in started.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_starts_beside_a_server_without_memory_waits_for_it(
    pool: str,
    worker: StartWorker,
    model_server: ModelServer,
    server: redis.Redis,
    broker: Valkey,
    valkey: Valkey,
    producer: MakeProducer,
) -> None:
    server.config_set("maxmemory", 1)
    env = {"FORWARDER_BROKER_URL": broker.url, "FORWARDER_RESULT_BACKEND": valkey.url}
    started = worker(pool=pool, env=model_server.env | env)
    started.wait_for_log("the Redis server refuses writes: OutOfMemoryError")
    time.sleep(1.0)
    server.config_set("maxmemory", 0)
    assert_serves(producer, broker, valkey, within_s=PATIENCE_S)
    assert "Frequent restarts" not in started.log()
