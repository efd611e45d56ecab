"""Entry point and pools: what is patched, what is refused, what is recycled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from forwarder.testing.processes import clean_env
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, asked, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

RECYCLING = {"CELERY_WORKER_MAX_TASKS_PER_CHILD": "5"}

#: Run in the child after ``__main__`` has prepared the process as it does for the worker.
REPORT = """
import json, os, sys
from forwarder import pool
chosen = pool.prepare(sys.argv[1:], os.environ)
early = sorted(set(pool.SOCKET_USERS) & set(sys.modules))
pool.verify(chosen)
monkey = sys.modules.get("gevent.monkey")
patched = [n for n in pool.PATCHED_MODULES if monkey and monkey.is_module_patched(n)]
import socket, ssl
print(json.dumps({"pool": chosen, "early": early, "gevent": "gevent" in sys.modules, "patched": patched,
                  "socket": socket.socket.__module__, "ssl": ssl.SSLSocket.__module__}))
"""


def run_child(
    argv: Sequence[str], tmp_path: object, env: Mapping[str, str] = {}, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    environment = clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT)} | dict(env)  # type: ignore[arg-type]
    return subprocess.run(
        [*prefix, sys.executable, *argv],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    "prefix", [[], [str(Path(sys.executable).with_name("ddtrace-run"))]], ids=["plain", "ddtrace"]
)
def test_under_gevent_socket_and_ssl_are_patched_before_anything_that_uses_them(
    tmp_path: object, prefix: list[str]
) -> None:
    child = run_child(["-c", REPORT], tmp_path, {"CELERY_WORKER_POOL": "gevent"}, prefix)
    report = json.loads(child.stdout)
    assert report["early"] == []
    assert report["socket"] == "gevent._socket3"
    assert report["ssl"] == "gevent.ssl"
    assert len(report["patched"]) == 6


def test_under_prefork_nothing_is_patched_and_gevent_is_not_imported(tmp_path: object) -> None:
    report = json.loads(run_child(["-c", REPORT], tmp_path).stdout)
    assert report == {
        "pool": "prefork",
        "early": [],
        "gevent": False,
        "patched": [],
        "socket": "socket",
        "ssl": "ssl",
    }


def test_an_unknown_pool_is_refused_at_once(tmp_path: object) -> None:
    for argv, env in (
        (["-m", "forwarder"], {"CELERY_WORKER_POOL": "eventlet"}),
        (["-m", "forwarder", "--pool", "solo"], {}),
    ):
        child = run_child(argv, tmp_path, env)
        assert child.returncode == 2
        assert "accepted: prefork or gevent" in child.stderr
        assert len(child.stderr.strip().splitlines()) == 1


def test_a_gevent_worker_that_nobody_patched_refuses_to_run(tmp_path: object) -> None:
    script = "from forwarder import pool; pool.verify('gevent')"
    child = run_child(["-c", script], tmp_path)
    assert "socket, ssl, select, threading, time, queue not patched" in child.stderr


def test_a_prefork_worker_that_somebody_patched_refuses_to_run(tmp_path: object) -> None:
    script = (
        "from gevent import monkey; monkey.patch_all(); from forwarder import pool; pool.verify('prefork')"
    )
    assert "patched by gevent" in run_child(["-c", script], tmp_path).stderr


def test_patching_after_a_socket_user_was_imported_is_refused(tmp_path: object) -> None:
    script = (
        "import urllib3; from forwarder import pool; pool.prepare(['run'], {'CELERY_WORKER_POOL': 'gevent'})"
    )
    assert "urllib3 imported before the patch" in run_child(["-c", script], tmp_path).stderr


@pytest.mark.parametrize("pool", POOLS)
def test_both_pools_boot_under_ddtrace_run_and_do_a_task(pool: str, redis_scene: RedisScene) -> None:
    running = redis_scene.ready(pool, ddtrace=True)
    assert total(redis_scene.send(numbers=[1, 2, 3])) == 6
    assert running.stop() == 0


def test_prefork_children_are_recycled_and_no_task_is_lost(
    redis_scene: RedisScene, worker: StartWorker
) -> None:
    running = worker(pool="prefork", env=redis_scene.env | RECYCLING)
    running.wait_ready()
    before = set(running.children())
    results = [redis_scene.send(numbers=[n]) for n in range(40)]
    assert [total(result) for result in results] == list(range(40))
    pids = {line.split()[2] for line in running.log().splitlines() if "task_done" in line}
    assert len(pids) >= 40 / 5
    assert len(before) >= 2
    wait_until(lambda: before.isdisjoint(running.children()))


def test_recycling_is_ignored_with_a_word_under_gevent(redis_scene: RedisScene, worker: StartWorker) -> None:
    running = worker(pool="gevent", env=redis_scene.env | RECYCLING)
    running.wait_ready()
    results = [redis_scene.send(numbers=[n]) for n in range(12)]
    assert [total(result) for result in results] == list(range(12))
    assert running.alive
    assert "CELERY_WORKER_MAX_TASKS_PER_CHILD" in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_the_worker_waits_for_the_inference_server_and_says_so(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    model_server.control(ready=False)
    running = redis_scene.start(pool)
    result = redis_scene.send(numbers=[1])
    running.wait_for_log("inference_wait")
    time.sleep(2)
    assert model_server.stats()["requests"] == 0
    model_server.control(ready=True)
    assert total(result) == 1


def test_a_worker_that_still_waits_stops_at_once(redis_scene: RedisScene, model_server: ModelServer) -> None:
    model_server.control(ready=False)
    running = redis_scene.start("gevent")
    running.wait_for_log("inference_wait")
    assert running.stop() == 0


@pytest.fixture
def store() -> Iterator[Valkey]:
    """A result store of its own: nobody else's commands are counted."""
    with Valkey() as made:
        yield made


def test_one_process_keeps_one_result_backend_and_reads_once_a_task(
    redis_scene: RedisScene, store: Valkey, producer: MakeProducer
) -> None:
    """Stock Celery under gevent opens a result connection per task, and reads before each write.

    Here a task reads once, before the call, and never before it writes.
    """
    redis_scene.ready("gevent", CONCURRENCY="10", RESULT_BACKEND=store.url)
    sender = producer(broker_url=redis_scene.env["FORWARDER_BROKER_URL"], backend=store.url)
    client: Any = redis.Redis.from_url(store.url)

    def calls(command: str) -> int:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    connections = client.info("stats")["total_connections_received"]
    writes, reads = calls("set"), calls("get")
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(200)]
    wait_until(lambda: calls("set") >= writes + 200)
    assert calls("set") - writes == 200
    assert calls("get") - reads == 200
    assert client.info("stats")["total_connections_received"] - connections < 60
    assert [total(result) for result in results] == list(range(200))


def test_no_process_of_a_prefork_worker_loads_gevent(redis_scene: RedisScene) -> None:
    running = redis_scene.ready("prefork", ddtrace=True)
    processes = [running.pid, *running.children()]
    assert len(processes) >= 3
    for pid in processes:
        maps = Path(f"/proc/{pid}/maps")
        assert not maps.exists() or "gevent" not in maps.read_text()


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_is_given_as_many_messages_as_it_has_slots(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    redis_scene.ready(pool, CONCURRENCY="3")
    results = [redis_scene.send(numbers=[n], behaviour=HELD) for n in range(9)]
    model_server.wait_in_flight(3)
    assert redis_scene.queued() == 6
    model_server.control(release=True)
    assert [total(result) for result in results] == list(range(9))


@pytest.mark.parametrize("pool", POOLS)
def test_a_producers_time_limit_does_not_end_a_task(pool: str, redis_scene: RedisScene) -> None:
    """Celery would store a failure over the result when the limit falls into the hooks."""
    redis_scene.ready(pool)
    payload = {"args": {"numbers": [1], "behaviour": {"sleep_s": 3}}}
    assert total(redis_scene.sender.send(payload, time_limit=1, soft_time_limit=1)) == 1


def test_a_task_whose_child_is_killed_is_done_by_another(
    redis_scene: RedisScene, model_server: ModelServer
) -> None:
    running = redis_scene.ready("prefork", CONCURRENCY="1")
    result = redis_scene.send(numbers=[7], behaviour=HELD)
    model_server.wait_in_flight(1)
    for pid in running.children():
        os.kill(pid, signal.SIGKILL)
    model_server.control(release=True)
    assert total(result) == 7
    assert asked(model_server, "task") == 2
    assert running.stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_whose_worker_is_killed_is_done_by_another(
    pool: str,
    redis_scene: RedisScene,
    worker: StartWorker,
    producer: MakeProducer,
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    """On RabbitMQ, which gives a message back as soon as its connection is gone."""
    env = redis_scene.env | {"FORWARDER_BROKER_URL": rabbitmq.url}
    first = worker(pool=pool, env=env)
    first.wait_ready()
    sender = producer(broker_url=rabbitmq.url, backend=valkey.url)
    result = sender.send({"args": {"numbers": [7], "behaviour": HELD}})
    model_server.wait_in_flight(1)
    first.kill()
    model_server.control(release=True)
    worker(pool=pool, env=env)
    assert total(result) == 7


@pytest.mark.parametrize("after", ["worker_start", "inference_ready"])
def test_a_stop_that_comes_while_the_worker_starts_is_a_success(after: str, redis_scene: RedisScene) -> None:
    running = redis_scene.start("prefork")
    running.wait_for_log(after)
    assert running.stop() == 0


def test_a_worker_that_is_stopping_takes_no_more_messages(
    redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Celery's blocking loop would run once more, and take what comes."""
    running = redis_scene.ready("gevent")
    held = redis_scene.send(numbers=[1], behaviour=HELD)
    model_server.wait_in_flight(1)
    os.kill(running.pid, signal.SIGTERM)
    running.wait_for_log("drain_start")
    time.sleep(3.5)  # the wait for a message that had begun is over: 2 s, and a BRPOP of 1 s
    redis_scene.send(request_id="late")
    time.sleep(1)
    model_server.control(release=True)
    assert running.wait_exit() == 0
    assert total(held) == 1
    assert asked(model_server, "late") == 0
    assert redis_scene.queued() == 1
