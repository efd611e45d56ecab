"""Children that are forked while the worker's own threads are at work: none inherits a lock for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from forwarder.testing.services import CHECKOUT
from tests.integration.scenes import RedisScene, total

if TYPE_CHECKING:
    from tests.integration.conftest import StartWorker

#: Every look at the result store holds a lock for a while, as clients hold theirs for a moment.
LOCKED_STORE = """
import threading, time
from forwarder.results.single_write import SingleWriteBackend

lock = threading.Lock()
stock = SingleWriteBackend.find

def find(self, task_id):
    with lock:
        time.sleep(0.05)
        return stock(self, task_id)

SingleWriteBackend.find = find
"""


def test_children_are_replaced_all_the_time_while_refusals_are_stored_and_every_task_is_done(
    redis_scene: RedisScene, worker: StartWorker, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOCKED_STORE)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}", "CELERY_WORKER_MAX_TASKS_PER_CHILD": "1"}
    running = worker(pool="prefork", env=redis_scene.env | env)
    running.wait_ready()
    results, refused = [], []
    for number in range(15):
        results.append(redis_scene.send(numbers=[number]))
        refused += [
            redis_scene.sender.app.send_task("no.such", queue=redis_scene.sender.queue) for _ in range(3)
        ]
    assert [total(result) for result in results] == list(range(15))
    assert all("does not serve" in str(result.get(timeout=30, propagate=False)) for result in refused)
    assert running.stop() == 0
