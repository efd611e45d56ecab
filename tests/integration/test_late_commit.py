"""A worker that alone is cut off from Redis runs on beside its peer, and then keeps quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from forwarder.testing.proxy import Proxy
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, POOLS, RedisScene, asked, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Receiver


@pytest.mark.parametrize("pool", POOLS)
def test_a_call_that_outlasted_its_lease_neither_replaces_what_a_peer_stored_nor_repeats_its_hooks(
    pool: str, redis_scene: RedisScene, valkey: Valkey, model_server: ModelServer, receiver: Receiver
) -> None:
    redis_scene.env.update(receiver.env)
    with Proxy(target_port=valkey.port) as proxy:
        cut_off = redis_scene.ready(
            pool, BROKER_URL=proxy.through(valkey.url), VISIBILITY_TIMEOUT_S="2", DRAIN_TIMEOUT_S="1"
        )
        model_server.control(behaviour=HELD)
        result = redis_scene.send(numbers=[1, 2])
        model_server.wait_in_flight(1)
        model_server.control(behaviour={})
        proxy.cut()
        redis_scene.ready(pool, VISIBILITY_TIMEOUT_S="2")
        assert total(result) == 3
        wait_until(lambda: len(receiver.bodies) == 1, "the peer's hooks have run")
        stored = redis_scene.broker.get(f"celery-task-meta-{result.id}")

        model_server.control(release=True)
        cut_off.wait_for_log(f"task_already_done task_id={result.id}")
        proxy.heal()
        wait_until(lambda: redis_scene.held() == 0, "the peer's ack stands")
        cut_off.stop()
    assert f"task_done task_id={result.id}" not in cut_off.log()
    assert redis_scene.broker.get(f"celery-task-meta-{result.id}") == stored
    assert (asked(model_server, "task"), len(receiver.bodies)) == (2, 1)
