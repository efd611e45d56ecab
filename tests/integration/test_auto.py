"""``--auto``: a worker that finds its own number of slots, before servers whose limits are known."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_tune import serving

if TYPE_CHECKING:
    from tests.integration.scenes import RedisScene

#: A level takes 5 s and a wave, and there are a few; on prefork a child that is too many ends in a second.
#: On a machine that is busy with other tests a level counts only once enough tasks have ended in it.
TIMEOUT_S = 400.0
INFERENCE_S = 0.25
#: So many tasks wait at least, so that the slots are always filled.
WAITING = 500
SETTLED = re.compile(r"auto_settled slots=(\d+)")


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize(
    ("pool", "most", "serves", "nearly"),
    [
        ("gevent", 128, 16, range(12, 25)),
        ("gevent", 24, 512, range(24, 25)),
        ("prefork", 16, 4, range(3, 7)),
    ],
)
def test_a_worker_ends_near_what_the_server_serves_at_a_time(
    pool: str, most: int, serves: int, nearly: range, redis_scene: RedisScene
) -> None:
    with serving(serves, inference_s=INFERENCE_S, response=b"{}") as env:
        args = ["--auto", "--autoscale", f"{most},2"]
        worker = redis_scene.worker(pool=pool, env=redis_scene.env | env, args=args)
        worker.wait_ready()
        until = time.monotonic() + TIMEOUT_S
        while not (found := SETTLED.search(worker.log())):
            assert time.monotonic() < until, "nothing was chosen"
            for _ in range(max(0, WAITING - redis_scene.queued())):
                redis_scene.send(numbers=[1])
            time.sleep(0.2)
        assert int(found[1]) in nearly
        assert all(int(slots) <= most for slots in re.findall(r"auto_\w+ slots=(\d+)", worker.log()))
        assert worker.stop() == 0
