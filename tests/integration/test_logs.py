"""The worker's log as JSON: every line of it an object, one for each task at its end, no payload in any."""

from __future__ import annotations

import json
import os
import re
import signal
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.loadtest.worker_log import WorkerLog
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S, POOLS, RedisScene, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Receiver

SECRET = "payload-that-nobody-may-see"
ALWAYS = {"ts", "level", "pid", "logger", "event"}


def lines(worker: Worker) -> list[dict[str, Any]]:
    """Return the log's lines; each must be a JSON object with the fields that are always there."""
    read = [dict(json.loads(line)) for line in worker.log().splitlines()]
    for line in read:
        assert line.keys() >= ALWAYS
        assert datetime.fromisoformat(line["ts"]).utcoffset() is not None
    return read


def ends(worker: Worker) -> list[dict[str, Any]]:
    """Return the last lines of tasks."""
    return [line for line in lines(worker) if line["logger"] == "forwarder.forwarding.task_scope"]


@pytest.mark.parametrize("pool", POOLS)
def test_each_task_has_one_line_at_its_end_and_every_line_is_json_without_payload(
    pool: str, redis_scene: RedisScene, receiver: Receiver
) -> None:
    env = redis_scene.env | receiver.env | {"FORWARDER_LOG_FORMAT": "json", "FORWARDER_RETRY_SLOT_S": "5"}
    worker = redis_scene.worker(pool=pool, env=env)
    worker.wait_ready()
    send = redis_scene.sender.send
    done = send({"args": {"numbers": [1], "text": SECRET}}, 1.0)
    done.get(timeout=PATIENCE_S)
    refused = send({"args": 1, "cloudpickle": SECRET}, task_id=f'{redis_scene.sender.queue}"\n\x1b[31m')
    refused.get(timeout=PATIENCE_S, propagate=False)
    busy = send({"args": {"id": "busy-once", "numbers": [1], "behaviour": {"busy": 1}}})
    busy.get(timeout=PATIENCE_S)
    wait_until(lambda: len(ends(worker)) == 3, "a line for each task")
    assert worker.stop() == 0

    told = {line["task_id"]: line for line in ends(worker)}
    assert len(ends(worker)) == len(told) == 3
    first = told[done.id]
    assert (first["event"], first["outcome"], first["status_code"]) == ("task_done", "success", 200)
    assert (first["queue"], first["deliveries"], first["tries"]) == (redis_scene.sender.queue, 1, 1)
    assert first["request_bytes"] == len(json.dumps({"numbers": [1], "text": SECRET}, separators=(",", ":")))
    assert first["response_bytes"] > 0
    times = [first[name] for name in ("inference_s", "store_s", "hooks_s")]
    assert all(isinstance(seconds, float) and seconds > 0 for seconds in times)
    assert first["run_s"] >= sum(times) - 0.001
    assert first["total_s"] == pytest.approx(first["wait_s"] + first["run_s"], abs=0.001)
    assert first["wait_s"] > 1e9  # it arrived in 1970

    assert told[refused.id]["outcome"] == "pickle_refused"
    assert (told[refused.id]["status_code"], told[refused.id]["tries"]) == (None, 0)
    assert told[refused.id]["hooks_s"] > 0
    assert told[refused.id]["total_s"] is None
    assert (told[busy.id]["outcome"], told[busy.id]["tries"]) == ("success", 2)
    assert SECRET not in worker.log()
    assert "\x1b" not in worker.log()


@pytest.mark.parametrize("pool", POOLS)
def test_lines_that_a_task_causes_name_it_whoever_wrote_them(pool: str, redis_scene: RedisScene) -> None:
    worker = redis_scene.ready(pool, LOG_FORMAT="json", LOG_LEVEL="DEBUG", RETRY_SLOT_S="5")
    args = {"id": "busy-once", "numbers": [1], "text": SECRET, "behaviour": {"busy": 1}}
    sent = redis_scene.sender.send({"args": args})
    sent.get(timeout=PATIENCE_S)
    wait_until(lambda: any(line["event"] == "task_done" for line in lines(worker)))
    told = [line for line in lines(worker) if line.get("task_id") == sent.id]
    assert {line["event"] for line in told} >= {"inference_retry", "task_done"}
    assert {line["queue"] for line in told} == {redis_scene.sender.queue}
    assert [line["attempt"] for line in told if line["event"] == "inference_retry"] == [1]
    # A line outside of any task has none, and at DEBUG, too, there is no payload.
    assert "task_id" not in next(line for line in lines(worker) if line["event"] == "worker_start")
    assert SECRET not in worker.log()


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_killed_child_is_told_in_a_line_of_the_logs_shape_and_counted(
    style: str, redis_scene: RedisScene
) -> None:
    worker = redis_scene.ready("prefork", LOG_FORMAT=style, CONCURRENCY="2")
    os.kill(worker.children()[0], signal.SIGKILL)
    wait_until(lambda: WorkerLog(worker.log_path).read()["kills"] == 1)
    assert redis_scene.send(numbers=[1]).get(timeout=PATIENCE_S)["status_code"] == 200
    assert worker.stop() == 0
    told = [line for line in worker.log().splitlines() if "(SIGKILL)" in line]
    assert len(told) == 1
    if style == "json":
        [line] = [line for line in lines(worker) if line["event"].startswith("Process ")]
        assert (line["level"], line["logger"], line["pid"]) == (
            "ERROR",
            "multiprocessing",
            lines(worker)[0]["pid"],
        )
    else:
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ ERROR \d+ multiprocessing: Process ", told[0])
