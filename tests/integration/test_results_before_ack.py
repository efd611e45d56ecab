"""A task is acked once its result is durable: the store is killed, frozen or away for too long."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import Producer, s3_conf
from forwarder.testing.services import ModelServer, Service, Valkey
from tests.integration.scenes import HELD, POOLS, RedisScene, asked, idle, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A result store of the test's own, to be ill-treated; it keeps its data over a restart."""
    with Valkey(persistent=True) as made:
        yield made


@pytest.fixture
def scene(redis_scene: RedisScene, store: Valkey, valkey: Valkey, producer: MakeProducer) -> RedisScene:
    """Results are in the store, and the sender doesn't look at them."""
    env = redis_scene.env | {"FORWARDER_RESULT_BACKEND": store.url}
    return replace(redis_scene, env=env, sender=producer(broker_url=valkey.url, backend="cache+memory://"))


@pytest.fixture
def reader(store: Valkey, valkey: Valkey, producer: MakeProducer) -> Producer:
    """Reads the results."""
    return producer(broker_url=valkey.url, backend=store.url)


def kill(service: Service) -> Callable[[], None]:
    """End the server; return what brings it back."""
    service.process.kill()
    return service.restart


def freeze(service: Service) -> Callable[[], None]:
    """Stop the server's process, its sockets stay open; return what lets it go on."""
    os.kill(service.pid, signal.SIGSTOP)
    return lambda: os.kill(service.pid, signal.SIGCONT)


def totals(reader: Producer, ids: list[str]) -> list[int]:
    return [total(reader.result(id_)) for id_ in ids]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("outage", "away_s"), [(kill, 3.0), (freeze, 12.0)])
def test_an_outage_of_the_store_is_waited_out_in_the_slot(
    pool: str,
    outage: Callable[[Service], Callable[[], None]],
    away_s: float,
    scene: RedisScene,
    reader: Producer,
    store: Valkey,
    model_server: ModelServer,
) -> None:
    """The frozen one is frozen for longer than one try lasts."""
    running = scene.ready(pool)
    caught = ["c0", "c1"]  # both slots hold one when the store goes
    waiting = ["w0", "w1", "w2", "w3"]
    ids = [scene.send(request_id=name, numbers=[3], behaviour=HELD).id for name in caught]
    model_server.wait_in_flight(2)
    bring_back = outage(store)
    ids += [scene.send(request_id=name, numbers=[3]).id for name in waiting]
    model_server.control(release=True)
    wait_until(lambda: idle(model_server))
    time.sleep(away_s)
    assert [asked(model_server, name) for name in waiting] == [0] * 4
    bring_back()
    assert totals(reader, ids) == [3] * 6
    assert [asked(model_server, name) for name in caught + waiting] == [1] * 6
    wait_until(lambda: scene.held() == 0)
    log = running.log()
    for id_ in ids[:2]:
        assert log.count(f"result_store_failing task_id={id_}") == 1
        assert log.count(f"result_store_recovered task_id={id_}") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_past_the_bound_the_message_goes_back_unharmed_and_is_done_when_the_store_is_back(
    pool: str, scene: RedisScene, reader: Producer, store: Valkey, model_server: ModelServer
) -> None:
    """With one delivery allowed and a slot each, a delivery that counted or a slot that leaked would show."""
    running = scene.ready(pool, STORE_RETRY_S="0.5", MAX_DELIVERIES="1", CONCURRENCY="1")
    ids = [scene.send(request_id="caught", numbers=[3], behaviour=HELD).id]
    model_server.wait_in_flight(1)
    bring_back = kill(store)
    model_server.control(release=True)
    running.wait_for_log(f"result_store_given_up task_id={ids[0]}")
    ids += [scene.send(request_id=uuid.uuid4().hex, numbers=[3]).id for _ in range(3)]
    wait_until(lambda: running.log().count("result_store_given_up") >= 4)
    assert model_server.stats()["requests"] == 1, "the GPU is not paid while nothing can be stored"
    bring_back()
    assert totals(reader, ids) == [3] * 4
    assert asked(model_server, "caught") == 2
    wait_until(lambda: scene.held() == 0)
    assert running.log().count("task_requeued") >= 4
    assert "celery.app.trace" not in running.log(), "it would tell each once more, with a traceback"


@pytest.mark.parametrize("pool", POOLS)
def test_a_failure_is_stored_before_its_ack_too(
    pool: str, scene: RedisScene, reader: Producer, store: Valkey, model_server: ModelServer
) -> None:
    running = scene.ready(pool, TRACK_STARTED="true", STORE_RETRY_S="0.5", CONCURRENCY="1")
    id_ = scene.send(behaviour={"answer": "text", **HELD}).id
    model_server.wait_in_flight(1)
    bring_back = kill(store)
    model_server.control(release=True)
    running.wait_for_log(f"result_store_given_up task_id={id_}")
    bring_back()
    with pytest.raises(Exception, match="not JSON"):
        total(reader.result(id_))
    wait_until(lambda: scene.held() == 0)


@pytest.mark.parametrize("pool", POOLS)
def test_results_in_s3_wait_for_s3(
    pool: str,
    redis_scene: RedisScene,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    with Moto() as moto:
        aws_resources.create_bucket(moto.env, "results")
        where = {"FORWARDER_RESULT_BACKEND": "s3://results/tmp/"}
        scene = replace(redis_scene, env=redis_scene.env | moto.env | where)
        running = scene.ready(pool)
        id_ = scene.send(numbers=[3], behaviour=HELD).id
        model_server.wait_in_flight(1)
        bring_back = kill(moto)
        model_server.control(release=True)
        running.wait_for_log(f"result_store_failing task_id={id_}")
        bring_back()
        # moto forgets its buckets; until there is one again the store says NoSuchBucket.
        time.sleep(1.0)
        aws_resources.create_bucket(moto.env, "results")
        conf: dict[str, Any] = s3_conf(moto.env, bucket="results", prefix="tmp/")
        reader = producer(broker_url=valkey.url, backend="s3://", conf=conf)
        assert totals(reader, [id_]) == [3]
        assert asked(model_server, "task") == 1
        wait_until(lambda: scene.held() == 0)
