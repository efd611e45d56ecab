"""The worker's probes: what /livez and /readyz answer in each state of the worker and of its services."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from forwarder.testing.processes import LOOPBACK, free_port
from forwarder.testing.proxy import Proxy
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, queue_on, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

#: The contract's bound is 0.05 s; ten times as much, because a loaded machine is not what is tested.
PROMPT_S = 0.5
STALL_S = 8.0


@dataclass(frozen=True, slots=True)
class Probes:
    """The endpoints of one worker."""

    port: int

    @property
    def env(self) -> dict[str, str]:
        return {"FORWARDER_HTTP_PORT": str(self.port), "FORWARDER_HTTP_HOST": LOOPBACK}

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def reasons(self, path: str) -> list[str]:
        """Return why the answer is no; empty where it is yes."""
        status, body = self.get(path)
        reasons = json.loads(body)["reasons"]
        assert status == (503 if reasons else 200)
        assert isinstance(reasons, list)
        return reasons

    def listens(self) -> bool:
        try:
            return self.get("/livez")[0] == 200
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        status, body = self.get("/status")
        assert status == 200
        return dict(json.loads(body))


@pytest.fixture
def probes() -> Probes:
    return Probes(free_port())


@pytest.fixture
def redis_env(valkey: Valkey, model_server: ModelServer, probes: Probes) -> dict[str, str]:
    urls = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": valkey.url}
    return urls | model_server.env | probes.env


@pytest.mark.parametrize("pool", POOLS)
def test_from_the_start_to_the_stop(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    redis_env: dict[str, str],
    probes: Probes,
) -> None:
    """Alive and not ready while the model loads; ready; alive and not ready while it drains."""
    model_server.control(ready=False)
    running = worker(pool=pool, env=redis_env)
    running.wait_for_log("inference_wait")
    assert probes.reasons("/livez") == []
    assert probes.reasons("/readyz") == ["starting"]
    assert probes.get("/metrics")[0] == 200
    assert probes.status()["not_ready"] == ["starting"]

    model_server.control(ready=True)
    running.wait_ready()
    wait_until(lambda: probes.reasons("/readyz") == [], "ready")
    assert probes.reasons("/livez") == []

    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"numbers": [1, 2], "behaviour": HELD}})
    model_server.wait_in_flight(1)
    running_tasks = probes.status()["in_flight"]["tasks"]
    assert [(task["id"], task["delivery"], task["begun"]) for task in running_tasks] == [(result.id, 1, True)]
    os.kill(running.pid, signal.SIGTERM)
    wait_until(lambda: probes.reasons("/readyz") == ["draining"], "draining")
    assert probes.reasons("/livez") == []

    model_server.control(release=True)
    assert total(result) == 3
    assert running.wait_exit() == 0


@pytest.mark.parametrize(
    ("broker", "pool"), [("redis", "prefork"), ("redis", "gevent"), ("amqp", "gevent"), ("sqs", "prefork")]
)
def test_with_the_broker_away_the_worker_is_alive_and_not_ready(
    broker: str,
    pool: str,
    request: pytest.FixtureRequest,
    queue_name: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    probes: Probes,
) -> None:
    """For longer than the time in which a task must end, with one in flight."""
    place = queue_on(broker, request, queue_name)
    service = request.getfixturevalue({"redis": "valkey", "amqp": "rabbitmq", "sqs": "moto"}[broker])
    with Proxy(target_port=service.port) as proxy:
        env = {name: proxy.through(value) for name, value in place.env.items()}
        env |= model_server.env | probes.env | {"FORWARDER_RESULT_BACKEND": valkey.url}
        running = worker(pool=pool, env=env, args=["--live-stall", str(STALL_S)])
        running.wait_ready()
        sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
        sender.send({"args": {"behaviour": HELD}})
        model_server.wait_in_flight(1)
        wait_until(lambda: probes.reasons("/readyz") == [], "ready")

        proxy.cut()
        wait_until(lambda: probes.reasons("/readyz") == ["broker"], "broker")
        until_s = time.monotonic() + STALL_S + 3
        while time.monotonic() < until_s:
            assert probes.reasons("/livez") == []
            assert probes.reasons("/readyz") == ["broker"]
            time.sleep(0.5)
        assert 'forwarder_dependency_up{dependency="broker"} 0.0' in probes.get("/metrics")[1]

        proxy.heal()
        wait_until(lambda: probes.reasons("/readyz") == [], "ready again")
        model_server.control(release=True)
        assert running.stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_with_the_inference_server_away_the_worker_is_alive_and_not_ready(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    redis_env: dict[str, str],
    probes: Probes,
) -> None:
    running = worker(pool=pool, env=redis_env, args=["--live-stall", str(STALL_S)])
    running.wait_ready()
    model_server.control(ready=False, behaviour=HELD)
    producer(broker_url=valkey.url, backend=valkey.url).send({"args": {}})
    wait_until(lambda: probes.reasons("/readyz") == ["inference"], "inference")
    until_s = time.monotonic() + STALL_S + 3
    while time.monotonic() < until_s:
        assert probes.reasons("/livez") == []
        time.sleep(0.5)
    model_server.control(ready=True, release=True)
    wait_until(lambda: probes.reasons("/readyz") == [], "ready again")


@pytest.mark.parametrize("pool", POOLS)
def test_with_the_result_store_away_the_worker_is_alive_and_not_ready_and_the_log_names_it(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    redis_env: dict[str, str],
    probes: Probes,
) -> None:
    with Proxy(target_port=valkey.port) as proxy:
        store = proxy.through(valkey.database(2))
        running = worker(
            pool=pool,
            env=redis_env | {"FORWARDER_RESULT_BACKEND": store},
            args=["--live-stall", str(STALL_S)],
        )
        running.wait_ready()
        wait_until(lambda: probes.reasons("/readyz") == [], "ready")
        proxy.cut()
        result = producer(broker_url=valkey.url, backend=valkey.database(2)).send({"args": {"numbers": [3]}})
        running.wait_for_log(f"result_store_failing task_id={result.id} store={store} error=")
        running.wait_for_log(f"result_store_away reason='{store}: ")
        assert probes.reasons("/readyz") == ["results"]
        assert 'forwarder_dependency_up{dependency="results"} 0.0' in probes.get("/metrics")[1]
        assert probes.status()["not_ready"] == ["results"]
        until_s = time.monotonic() + STALL_S + 3
        while time.monotonic() < until_s:
            assert probes.reasons("/livez") == []
            time.sleep(0.5)
        proxy.heal()
        wait_until(lambda: probes.reasons("/readyz") == [], "ready again")
        assert total(result) == 3


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", ["nobody", "full", "no bucket"])
def test_a_worker_with_a_result_store_that_can_not_be_used_never_gets_ready(
    pool: str,
    kind: str,
    worker: StartWorker,
    request: pytest.FixtureRequest,
    redis_env: dict[str, str],
    probes: Probes,
) -> None:
    """So a rollout stops at it."""
    env = dict(redis_env)
    if kind == "no bucket":
        store, why = "s3://no-such-bucket/results/", "NoSuchBucket"
        env |= request.getfixturevalue("moto").env
    elif kind == "full":
        own = request.getfixturevalue("own_store")
        with redis.Redis.from_url(own.url) as client:
            client.config_set("maxmemory", 1)
        store, why = own.url, "OutOfMemoryError"
    else:
        nobody = request.getfixturevalue("nobody").rpartition(":")[2]
        store, why = f"redis://{LOOPBACK}:{nobody}/1", "ConnectionError"
    running = worker(pool=pool, env=env | {"FORWARDER_RESULT_BACKEND": store})
    running.wait_ready()
    running.wait_for_log(f"result_store_away reason='{store}: {why}'")
    wait_until(lambda: probes.reasons("/readyz") == ["results"], "not ready")
    assert probes.reasons("/livez") == []


@pytest.fixture
def own_store() -> Iterator[Valkey]:
    with Valkey() as own:
        yield own


@pytest.mark.parametrize("pool", POOLS)
def test_with_tasks_of_which_none_ends_the_worker_is_not_alive(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    redis_env: dict[str, str],
    probes: Probes,
) -> None:
    running = worker(pool=pool, env=redis_env, args=["--live-stall", "1"])
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    assert probes.reasons("/livez") == []
    result = sender.send({"args": {"numbers": [1, 2], "behaviour": HELD}})
    model_server.wait_in_flight(1)
    wait_until(lambda: probes.reasons("/livez") == ["stalled"], "stalled")
    assert live_probe(redis_env) == (1, "not live: stalled\n")
    running.wait_for_log("not_live reasons=stalled")
    model_server.control(release=True)
    assert total(result) == 3
    wait_until(lambda: probes.reasons("/livez") == [], "alive again")
    assert live_probe(redis_env) == (0, "live\n")
    running.wait_for_log("live_again")


@pytest.mark.parametrize(("pool", "reasons"), [("prefork", {"loop"}), ("gevent", {"loop", "hub"})])
def test_a_main_thread_that_stands_still_is_not_alive_and_the_log_tells_where(
    pool: str,
    reasons: set[str],
    worker: StartWorker,
    redis_env: dict[str, str],
    probes: Probes,
    tmp_path: Path,
) -> None:
    stand = tmp_path / "stand"
    stand.touch()
    running = worker(
        pool=pool,
        env=redis_env | {"STAND_FILE": str(stand)},
        module="tests.integration.standing_worker",
    )
    running.wait_ready()
    wait_until(lambda: probes.reasons("/readyz") == [], "ready")
    os.kill(running.pid, signal.SIGUSR2)
    wait_until(lambda: set(probes.reasons("/livez")) == reasons, "stuck")
    running.wait_for_log(" stand_still")
    assert probes.status()["not_live"]
    assert "forwarder_live 0.0" in probes.get("/metrics")[1]
    stand.unlink()
    wait_until(lambda: probes.reasons("/livez") == [], "alive again")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("broker", ["redis", "amqp", "sqs"])
def test_under_load_the_worker_is_alive_and_ready_and_tells_what_it_does(
    pool: str,
    broker: str,
    request: pytest.FixtureRequest,
    queue_name: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    probes: Probes,
) -> None:
    place = queue_on(broker, request, queue_name)
    env = place.env | model_server.env | probes.env | {"FORWARDER_RESULT_BACKEND": valkey.url}
    running = worker(pool=pool, env=env, args=["--concurrency", "4", "--live-stall", "30"])
    running.wait_ready()
    wait_until(lambda: probes.reasons("/readyz") == [], "ready")
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(100)]
    slowest_s = 0.0
    while not all(result.ready() for result in results):
        for path in ("/livez", "/readyz", "/metrics", "/status"):
            started_s = time.monotonic()
            assert probes.get(path)[0] == 200
            slowest_s = max(slowest_s, time.monotonic() - started_s)
    assert slowest_s < PROMPT_S
    assert [total(result) for result in results] == list(range(100))
    told = probes.status()
    assert told["metrics"][f"forwarder_tasks_total{{queue={queue_name},outcome=success}}"] == 100
    assert told["limits"]["slots_max"] == 4
    assert told["hostname"].startswith(f"forwarder-{running.pid}@")
    assert len(told["children"]) == (4 if pool == "prefork" else 0)


def test_children_hold_no_socket_of_the_endpoints(
    worker: StartWorker, redis_env: dict[str, str], probes: Probes
) -> None:
    """A child that held the port would keep the next worker from opening it."""
    running = worker(pool="prefork", env=redis_env)
    running.wait_ready()
    children = [psutil.Process(pid) for pid in running.children()]
    assert len(children) >= 2
    for child in children:
        assert [link for link in child.net_connections() if link.laddr.port == probes.port] == []


@pytest.mark.parametrize("pool", POOLS)
def test_a_port_that_is_taken_stops_the_worker_with_2_and_one_line(
    pool: str, worker: StartWorker, redis_env: dict[str, str], nobody: str
) -> None:
    taken = nobody.rpartition(":")[2]
    refused = worker(pool=pool, env=redis_env | {"FORWARDER_HTTP_PORT": taken})
    assert refused.wait_exit() == 2
    (line,) = [line for line in refused.log().splitlines() if line.startswith("forwarder: ")]
    assert line.startswith(
        f"forwarder: --http-port (FORWARDER_HTTP_PORT) is '{taken}'; accepted: a port that"
    )


def live_probe(env: dict[str, str]) -> tuple[int, str]:
    """Run the exec probe; return its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "forwarder", "check", "--live"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_exec_probe_of_nobody_is_3(redis_env: dict[str, str]) -> None:
    code, said = live_probe(redis_env)
    assert code == 3
    assert said.startswith("no answer from 127.0.0.1 port ")


def test_the_exec_probe_without_a_port_is_2() -> None:
    assert live_probe({})[0] == 2
