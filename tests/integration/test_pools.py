"""Entry point and pools: what is patched, what is refused, what is recycled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.testing.processes import clean_env
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

pytestmark = pytest.mark.timeout(90)

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
        timeout=30,
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


def redis_env(valkey: Valkey, model_server: ModelServer) -> dict[str, str]:
    return {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": valkey.url, **model_server.env}


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_both_pools_boot_under_ddtrace_run_and_do_a_task(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=redis_env(valkey, model_server), ddtrace=True)
    running.wait_ready()
    result = producer(broker_url=valkey.url, backend=valkey.url).send({"args": {"numbers": [1, 2, 3]}})
    assert result.get(timeout=20)["result"]["sum"] == 6
    assert running.stop() == 0


def test_prefork_children_are_recycled_and_no_task_is_lost(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    env = redis_env(valkey, model_server) | {"CELERY_WORKER_MAX_TASKS_PER_CHILD": "5"}
    running = worker(pool="prefork", env=env)
    running.wait_ready()
    before = set(running.children())
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(40)]
    assert [r.get(timeout=60)["result"]["sum"] for r in results] == list(range(40))
    pids = {line.split()[2] for line in running.log().splitlines() if "task_done" in line}
    assert len(pids) >= 40 / 5
    assert len(before) >= 2
    assert before.isdisjoint(running.children())


def test_recycling_is_ignored_with_a_word_under_gevent(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    env = redis_env(valkey, model_server) | {"CELERY_WORKER_MAX_TASKS_PER_CHILD": "5"}
    running = worker(pool="gevent", env=env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    for result in [sender.send({"args": {"numbers": [n]}}) for n in range(12)]:
        result.get(timeout=20)
    assert running.alive
    assert "CELERY_WORKER_MAX_TASKS_PER_CHILD" in running.log()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_the_worker_waits_for_the_inference_server_and_says_so(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    model_server.control(ready=False)
    running = worker(pool=pool, env=redis_env(valkey, model_server))
    result = producer(broker_url=valkey.url, backend=valkey.url).send({"args": {"numbers": [1]}})
    running.wait_for_log("inference_wait")
    time.sleep(2)
    assert model_server.stats()["requests"] == 0
    model_server.control(ready=True)
    assert result.get(timeout=30)["status_code"] == 200


def test_a_worker_that_still_waits_stops_at_once(
    worker: StartWorker, valkey: Valkey, model_server: ModelServer
) -> None:
    model_server.control(ready=False)
    running = worker(pool="gevent", env=redis_env(valkey, model_server))
    running.wait_for_log("inference_wait")
    assert running.stop() == 0


def test_one_process_keeps_one_result_backend_and_reads_once_a_task(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Stock Celery under gevent opens a result connection per task, and reads before each write.

    Here a task reads once, before the call, and never before it writes.
    """
    env = redis_env(valkey, model_server) | {"FORWARDER_CONCURRENCY": "10"}
    running = worker(pool="gevent", env=env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    backend: Any = sender.app.backend
    client = backend.client

    def calls(command: str) -> int:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    connections = client.info("stats")["total_connections_received"]
    writes, reads = calls("setex"), calls("get")
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(200)]
    deadline = time.monotonic() + 30
    while calls("setex") < writes + 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert calls("setex") - writes == 200
    assert calls("get") - reads == 200
    assert client.info("stats")["total_connections_received"] - connections < 60
    assert [result.get(timeout=10)["result"]["sum"] for result in results] == list(range(200))


def test_no_process_of_a_prefork_worker_loads_gevent(
    worker: StartWorker, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool="prefork", env=redis_env(valkey, model_server), ddtrace=True)
    running.wait_ready()
    processes = [running.pid, *running.children()]
    assert len(processes) >= 3
    for pid in processes:
        maps = Path(f"/proc/{pid}/maps")
        assert not maps.exists() or "gevent" not in maps.read_text()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_worker_is_given_as_many_messages_as_it_has_slots(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=redis_env(valkey, model_server) | {"FORWARDER_CONCURRENCY": "3"})
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    results = [sender.send({"args": {"behaviour": {"sleep_s": 2}}}) for _ in range(9)]
    model_server.wait_in_flight(3)
    backend: Any = sender.app.backend
    assert backend.client.llen(sender.queue) == 6
    assert [result.get(timeout=60)["status_code"] for result in results] == [200] * 9


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_producers_time_limit_does_not_end_a_task(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Celery would store a failure over the result when the limit falls into the hooks."""
    running = worker(pool=pool, env=redis_env(valkey, model_server))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"behaviour": {"sleep_s": 3}}}, time_limit=1, soft_time_limit=1)
    assert result.get(timeout=30)["status_code"] == 200


def test_a_task_whose_child_is_killed_is_done_by_another(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool="prefork", env=redis_env(valkey, model_server) | {"FORWARDER_CONCURRENCY": "1"})
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"id": "killed", "numbers": [7], "behaviour": {"sleep_s": 2}}})
    model_server.wait_in_flight(1)
    for pid in running.children():
        os.kill(pid, signal.SIGKILL)
    assert result.get(timeout=60)["result"]["sum"] == 7
    assert model_server.stats()["by_id"]["killed"] == 2
    assert running.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_task_whose_worker_is_killed_is_done_by_another(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    """On RabbitMQ, which gives a message back as soon as its connection is gone."""
    env = redis_env(valkey, model_server) | {"FORWARDER_BROKER_URL": rabbitmq.url}
    first = worker(pool=pool, env=env)
    first.wait_ready()
    sender = producer(broker_url=rabbitmq.url, backend=valkey.url)
    result = sender.send({"args": {"numbers": [7], "behaviour": {"sleep_s": 3}}})
    model_server.wait_in_flight(1)
    first.kill()
    worker(pool=pool, env=env).wait_ready()
    assert result.get(timeout=60)["result"]["sum"] == 7


@pytest.mark.parametrize("after", ["worker_start", "inference_ready"])
def test_a_stop_that_comes_while_the_worker_starts_is_a_success(
    after: str, worker: StartWorker, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool="prefork", env=redis_env(valkey, model_server))
    running.wait_for_log(after)
    assert running.stop() == 0


def test_a_worker_that_is_stopping_takes_no_more_messages(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Celery's blocking loop would run once more, and take what comes."""
    running = worker(pool="gevent", env=redis_env(valkey, model_server))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    held = sender.send({"args": {"behaviour": {"sleep_s": 7}}})
    model_server.wait_in_flight(1)
    os.kill(running.pid, signal.SIGTERM)
    time.sleep(3.5)  # the wait for a message that had begun is over: 2 s, and a BRPOP of 1 s
    sender.send({"args": {"id": "late"}})
    assert running.wait_exit() == 0
    assert held.get(timeout=5)["status_code"] == 200
    assert "late" not in model_server.stats()["by_id"]
    backend: Any = sender.app.backend
    assert backend.client.llen(sender.queue) == 1
