"""A task is acked once its result is durable: the store is killed, frozen or away for too long."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import Producer, s3_conf
from forwarder.testing.services import ModelServer, Service, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

POOLS = ["prefork", "gevent"]


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A result store of the test's own, to be ill-treated; it keeps its data over a restart."""
    with Valkey(persistent=True) as made:
        yield made


def kill(service: Service) -> Callable[[], None]:
    """End the server; return what brings it back."""
    service.process.kill()
    return service.restart


def freeze(service: Service) -> Callable[[], None]:
    """Stop the server's process, its sockets stay open; return what lets it go on."""
    os.kill(service.pid, signal.SIGSTOP)
    return lambda: os.kill(service.pid, signal.SIGCONT)


def task(**behaviour: Any) -> dict[str, Any]:
    return {"args": {"id": uuid.uuid4().hex, "numbers": [1, 2], "behaviour": behaviour}}


def times_asked(model_server: ModelServer, payload: dict[str, Any]) -> int:
    return int(model_server.stats()["by_id"].get(payload["args"]["id"], 0))


def wait_for(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def values(sender: Producer, ids: list[str], timeout_s: float = 40.0) -> list[Any]:
    """Return the tasks' sums, each waited for."""
    return [sender.result(id_).get(timeout=timeout_s)["result"]["sum"] for id_ in ids]


def held(valkey: Valkey, queue: str) -> int:
    """Return how many messages of a queue are waiting, unacked or in the dead letters."""
    client: Any = redis.Redis.from_url(valkey.url)
    return int(
        client.llen(queue) + client.hlen(f"forwarder:{{{queue}}}:unacked") + client.llen(f"{queue}.dead")
    )


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("outage", "away_s"), [(kill, 3.0), (freeze, 12.0)])
def test_an_outage_of_the_store_is_waited_out_in_the_slot(
    pool: str,
    outage: Callable[[Service], Callable[[], None]],
    away_s: float,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    store: Valkey,
    model_server: ModelServer,
) -> None:
    """The frozen one is frozen for longer than one try lasts."""
    env = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": store.url}
    running = worker(pool=pool, env=env | model_server.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=store.url)
    caught = [task(sleep_s=1.5) for _ in range(2)]  # both slots hold one when the store goes
    waiting = [task() for _ in range(4)]
    broker = producer(broker_url=valkey.url, backend="cache+memory://")
    ids = [broker.send(payload).id for payload in caught]
    model_server.wait_in_flight(2)
    bring_back = outage(store)
    ids += [broker.send(payload).id for payload in waiting]
    wait_for(lambda: model_server.stats()["in_flight"] == 0)
    time.sleep(away_s)
    assert [times_asked(model_server, payload) for payload in waiting] == [0] * 4
    bring_back()
    assert values(sender, ids) == [3] * 6
    assert [times_asked(model_server, payload) for payload in caught + waiting] == [1] * 6
    wait_for(lambda: held(valkey, queue_name) == 0)
    log = running.log()
    for id_ in ids[:2]:
        assert log.count(f"result_store_failing task_id={id_}") == 1
        assert log.count(f"result_store_recovered task_id={id_}") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_past_the_bound_the_message_goes_back_unharmed_and_is_done_when_the_store_is_back(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    store: Valkey,
    model_server: ModelServer,
) -> None:
    """With one delivery allowed and a slot each, a delivery that counted or a slot that leaked would show."""
    env = {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": store.url,
        "FORWARDER_STORE_RETRY_S": "0.5",
        "FORWARDER_MAX_DELIVERIES": "1",
        "FORWARDER_CONCURRENCY": "1",
    }
    running = worker(pool=pool, env=env | model_server.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=store.url)
    broker = producer(broker_url=valkey.url, backend="cache+memory://")
    payload = task(sleep_s=1.0)
    ids = [broker.send(payload).id]
    model_server.wait_in_flight(1)
    bring_back = kill(store)
    running.wait_for_log(f"result_store_given_up task_id={ids[0]}")
    ids += [broker.send(task()).id for _ in range(3)]
    time.sleep(4.0)
    assert running.log().count("result_store_given_up") >= 4
    assert model_server.stats()["requests"] == 1, "the GPU is not paid while nothing can be stored"
    bring_back()
    assert values(sender, ids) == [3] * 4
    assert times_asked(model_server, payload) == 2
    wait_for(lambda: held(valkey, queue_name) == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_a_failure_is_stored_before_its_ack_too(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    store: Valkey,
    model_server: ModelServer,
) -> None:
    env = {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": store.url,
        "FORWARDER_TRACK_STARTED": "true",
        "FORWARDER_STORE_RETRY_S": "0.5",
        "FORWARDER_CONCURRENCY": "1",
    }
    running = worker(pool=pool, env=env | model_server.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=store.url)
    broker = producer(broker_url=valkey.url, backend="cache+memory://")
    id_ = broker.send(task(sleep_s=1.0, answer="text")).id
    model_server.wait_in_flight(1)
    bring_back = kill(store)
    running.wait_for_log(f"result_store_given_up task_id={id_}")
    bring_back()
    with pytest.raises(Exception, match="not JSON"):
        sender.result(id_).get(timeout=30)
    wait_for(lambda: held(valkey, queue_name) == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_results_in_s3_wait_for_s3(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    with Moto() as moto:
        aws_resources.create_bucket(moto.env, "results")
        env = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": "s3://results/tmp/"}
        running = worker(pool=pool, env=moto.env | env | model_server.env)
        running.wait_ready()
        sender = producer(
            broker_url=valkey.url, backend="s3://", conf=s3_conf(moto.env, bucket="results", prefix="tmp/")
        )
        payload = task(sleep_s=1.0)
        id_ = sender.send(payload).id
        model_server.wait_in_flight(1)
        bring_back = kill(moto)
        running.wait_for_log(f"result_store_failing task_id={id_}")
        bring_back()
        # moto forgets its buckets; until there is one again the store says NoSuchBucket.
        time.sleep(1.0)
        aws_resources.create_bucket(moto.env, "results")
        assert values(sender, [id_]) == [3]
        assert times_asked(model_server, payload) == 1
        wait_for(lambda: held(valkey, queue_name) == 0)
