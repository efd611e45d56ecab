"""Above the soft limit of memory fewer slots are filled, below it all again: without a budget of bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from forwarder.scaling.container import MIB
from forwarder.scaling.process_memory import exact
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, total, wait_until

if TYPE_CHECKING:
    from tests.integration.scenes import RedisScene

SLOTS = 40
#: A worker has some 60 MiB, and a held task some 12: about ten make 70 %, and all would be twice the limit.
LIMIT_MB = 250
TEXT = "x" * 2_500_000
#: Far more than there can be.
NO_BUDGET = str(100 * 1024**3)
#: Seconds between two payloads: the guard looks once a second.
PAUSE_S = 0.3


def test_above_the_soft_limit_fewer_slots_are_filled_and_below_it_all_of_them_again(
    redis_scene: RedisScene, model_server: ModelServer
) -> None:
    worker = redis_scene.ready(
        "gevent", CONCURRENCY=str(SLOTS), MEMORY_LIMIT_MB=str(LIMIT_MB), INFLIGHT_BYTES_MAX=NO_BUDGET
    )
    results = []
    for number in range(SLOTS):
        results.append(redis_scene.send(request_id=f"t{number}", numbers=[1], text=TEXT, behaviour=HELD))
        time.sleep(PAUSE_S)
    worker.wait_for_log("memory_soft_limit_passed")
    assert redis_scene.queued() > SLOTS // 2
    own = exact(worker.pid)
    assert own is not None
    assert own.unique_bytes < LIMIT_MB * MIB

    model_server.control(release=True)
    assert [total(result) for result in results] == [1] * SLOTS
    worker.wait_for_log("memory_soft_limit_kept_again")
    model_server.control(reset=True)
    for number in range(SLOTS):
        redis_scene.send(request_id=f"again{number}", numbers=[1], behaviour=HELD)
    wait_until(lambda: model_server.stats()["in_flight"] == SLOTS, "the slots did not come back")
    assert "inflight_bytes_reached" not in worker.log()
