"""The worker's numbers, as Prometheus reads them and as Datadog's agent gets them: exactly what happened."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery.exceptions import TaskRevokedError
from prometheus_client.parser import text_string_to_metric_families

from forwarder.testing.processes import LOOPBACK, free_port
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, queue_on, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """The metrics of one worker by HTTP."""

    def __init__(self) -> None:
        self.port = free_port()
        self.settings = {"HTTP_PORT": str(self.port), "HTTP_HOST": LOOPBACK}

    def samples(self) -> Samples:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/metrics", timeout=PATIENCE_S) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {
            (each.name, frozenset(each.labels.items())): each.value
            for all_ in families
            for each in all_.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((f"forwarder_{name}", frozenset(labels.items())))

    def sums(self, name: str) -> dict[frozenset[str], float]:
        """Return the series of a counter that are above 0, by the values of their labels but the queue."""
        return {
            frozenset(value for label, value in labels if label != "queue"): number
            for (found, labels), number in self.samples().items()
            if found == f"forwarder_{name}" and number
        }


@pytest.fixture
def page() -> Page:
    return Page()


def counted(**numbers: float) -> dict[frozenset[str], float]:
    return {frozenset({name}): number for name, number in numbers.items()}


@pytest.mark.parametrize("pool", POOLS)
def test_a_hundred_tasks_are_counted_exactly_through_failures_recycling_and_a_killed_child(
    pool: str, redis_scene: RedisScene, model_server: ModelServer, page: Page
) -> None:
    settings = page.settings | {"HOOKS": "callback", "TRACK_STARTED": "true", "VISIBILITY_TIMEOUT_S": "60"}
    env = {"CELERY_WORKER_MAX_TASKS_PER_CHILD": "7"}
    running = redis_scene.worker(
        pool=pool,
        env=redis_scene.env | env | {f"FORWARDER_{name}": value for name, value in settings.items()},
    )
    running.wait_ready()
    arrived = time.time()
    held = redis_scene.sender.send({"args": {"id": "held", "behaviour": HELD}}, arrived)
    model_server.wait_in_flight(1)
    assert page.value("inflight") == 1
    assert page.value("pool_size", state="busy") == page.value("pool_size", state="idle") == 1
    assert page.value("concurrency_limit") == 2
    results = [redis_scene.sender.send({"args": {"numbers": [number]}}, arrived) for number in range(90)]
    failed = [redis_scene.sender.send("no payload", arrived) for _ in range(9)]
    killed = 0
    if pool == "prefork":
        wait_until(lambda: held.state == "STARTED", "the held task has begun")
        os.kill(held.info["pid"], signal.SIGKILL)
        killed = 1
    assert sum(total(result) for result in results) == sum(range(90))
    for result in failed:
        result.get(timeout=PATIENCE_S, propagate=False)
    wait_until(lambda: model_server.stats()["in_flight"] == 1, "the held task runs again")
    model_server.control(release=True)
    held.get(timeout=PATIENCE_S)
    wait_until(lambda: page.value("inflight") == 0, "all are settled")

    back = {"requeued": 1} if killed else {}
    assert page.sums("tasks_total") == counted(success=91, invalid_payload=9, **back)
    again = {"redelivered": 1} if killed else {}
    assert page.sums("deliveries_total") == counted(first=100, **again)
    assert page.sums("hook_total") == {frozenset({"callback", "skipped"}): 100}
    queue = held_queue(redis_scene)
    assert page.value("task_seconds_count", queue=queue) == 100
    assert page.value("task_seconds_bucket", queue=queue, le="+Inf") == 100
    assert page.value("inference_seconds_count", status="200") == 91
    assert page.value("hook_backlog", hook="callback") == 0
    assert page.value("queue_depth", queue=queue) is not None
    assert page.value("memory_bytes", kind="rss")
    wait_until(lambda: (page.value("memory_bytes", kind="used") or 0) > 0, "the memory guard has looked")
    assert len(page.sums("info")) == 1
    if pool == "prefork":
        wait_until(lambda: page.value("pool_size", state="idle") == 2, "the children were replaced")


def held_queue(scene: RedisScene) -> str:
    return scene.sender.queue


class Agent:
    """Takes what a DogStatsD client sends, until it is closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while packet := self._sock.recv(65536):
            self._lines += packet.decode().splitlines()

    def sums(self, name: str, kind: str = "c") -> Counter[frozenset[str]]:
        """Return what the lines of one metric add up to, by the tags; of ``d`` the number of measurements."""
        found: Counter[frozenset[str]] = Counter()
        for line in list(self._lines):
            head, of_kind, *rest = line.split("|")
            if head.startswith(f"forwarder.{name}:") and of_kind == kind:
                tags = next(part[1:] for part in rest if part.startswith("#"))
                found[frozenset(tags.split(","))] += int(head.partition(":")[2]) if kind == "c" else 1
        return found

    def gauge(self, name: str) -> float | None:
        values = [line.split("|")[0].partition(":")[2] for line in list(self._lines) if f".{name}:" in line]
        return float(values[-1]) if values else None


@pytest.fixture(params=["udp", "unix"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Agent, str]]:
    """An agent and its address, as ``DD_DOGSTATSD_URL`` has it."""
    with socket.socket(
        socket.AF_INET if request.param == "udp" else socket.AF_UNIX, socket.SOCK_DGRAM
    ) as sock:
        if request.param == "udp":
            sock.bind((LOOPBACK, 0))
            address = f"udp://{LOOPBACK}:{sock.getsockname()[1]}"
        else:
            sock.bind(str(tmp_path / "dsd.socket"))
            address = f"unix://{tmp_path / 'dsd.socket'}"
        yield Agent(sock), address


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_is_revoked_while_it_runs_is_counted_as_that_and_as_nothing_else(
    pool: str, redis_scene: RedisScene, model_server: ModelServer, page: Page
) -> None:
    settings = {f"FORWARDER_{name}": value for name, value in page.settings.items()}
    redis_scene.worker(pool=pool, env=redis_scene.env | settings).wait_ready()
    result = redis_scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE_S)
    assert total(redis_scene.send(numbers=[4])) == 4
    wait_until(lambda: page.sums("tasks_total") == counted(success=1, revoked=1))


@pytest.mark.parametrize("pool", POOLS)
def test_messages_that_are_refused_are_counted_as_dead_for_they_are_put_aside_too(
    pool: str, redis_scene: RedisScene, valkey: Any, page: Page
) -> None:
    settings = {f"FORWARDER_{name}": value for name, value in page.settings.items()}
    redis_scene.worker(pool=pool, env=redis_scene.env | settings).wait_ready()
    queue = held_queue(redis_scene)
    redis_scene.sender.app.send_task("nobody.serves.this", args=[{}], queue=queue)
    with redis.Redis.from_url(valkey.url) as client:
        client.lpush(queue, b"garbage{")
    wait_until(lambda: page.sums("deliveries_total") == counted(dead=2), "both are put aside")
    assert page.sums("tasks_total") == counted(unknown_task=1, invalid_message=1)


def test_a_task_that_kills_its_child_again_and_again_is_redelivered_and_then_dead(
    redis_scene: RedisScene, model_server: ModelServer, page: Page
) -> None:
    settings = page.settings | {"MAX_DELIVERIES": "2", "TRACK_STARTED": "true", "CONCURRENCY": "1"}
    env = {f"FORWARDER_{name}": value for name, value in settings.items()}
    running = redis_scene.worker(pool="prefork", env=redis_scene.env | env)
    running.wait_ready()
    result = redis_scene.send(behaviour=HELD)
    killed: set[int] = set()

    def begun() -> bool:
        return result.state == "STARTED" and result.info["pid"] not in killed

    for _ in range(2):
        wait_until(begun, "it runs")
        model_server.wait_in_flight(1)
        killed.add(result.info["pid"])
        os.kill(result.info["pid"], signal.SIGKILL)
    result.get(timeout=PATIENCE_S, propagate=False)
    wait_until(
        lambda: page.sums("deliveries_total") == counted(first=1, redelivered=2, dead=1), "all are counted"
    )
    assert page.sums("tasks_total") == counted(requeued=2, dead_lettered=1)
    running.wait_for_log("task_broke_off")
    assert "error=WorkerLostError" in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_datadogs_agent_gets_the_same_names_tags_and_sums_the_last_of_them_at_the_stop(
    pool: str, agent: tuple[Agent, str], redis_scene: RedisScene
) -> None:
    sink, address = agent
    env = {"DD_DOGSTATSD_URL": address, "DD_ENV": "test", "DD_SERVICE": "model", "DD_VERSION": "1"}
    running = redis_scene.worker(pool=pool, env=redis_scene.env | env)
    running.wait_ready()
    results = [redis_scene.sender.send({"args": {"numbers": [1]}}, time.time()) for _ in range(30)]
    assert sum(map(total, results)) == 30
    assert running.stop() == 0

    constant = {"env:test", "service:model", "version:1"}
    queue = f"queue:{redis_scene.sender.queue}"
    assert sink.sums("tasks") == {frozenset({queue, "outcome:success", *constant}): 30}
    assert sink.sums("deliveries") == {frozenset({queue, "kind:first", *constant}): 30}
    assert sink.sums("inference_seconds", "d") == {frozenset({"status:200", *constant}): 30}
    assert sink.sums("task_seconds", "d") == {frozenset({queue, *constant}): 30}
    assert sink.gauge("inflight") == 0
    assert "dogstatsd" not in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_an_agent_that_is_away_costs_a_line_and_no_task(
    pool: str, redis_scene: RedisScene, nobody: str, tmp_path: Path
) -> None:
    running = redis_scene.worker(
        pool=pool, env=redis_scene.env | {"DD_DOGSTATSD_URL": f"unix://{tmp_path / 'nobody.socket'}"}
    )
    running.wait_ready()
    assert total(redis_scene.send(numbers=[1, 2])) == 3
    begun_s = time.monotonic()
    assert running.stop() == 0
    assert running.log().count("dogstatsd_failing error=not_sent") == 1
    assert "Traceback" not in running.log()
    assert time.monotonic() - begun_s < PATIENCE_S


@pytest.mark.parametrize("broker", ["redis", "amqp", "sqs"])
@pytest.mark.parametrize("pool", POOLS)
def test_what_waits_is_told_as_the_broker_tells_it(
    broker: str,
    pool: str,
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Any,
    queue_name: str,
    model_server: ModelServer,
    page: Page,
) -> None:
    place = queue_on(broker, request, queue_name)
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
    env = (
        place.env | model_server.env | {"FORWARDER_RESULT_BACKEND": valkey.url, "FORWARDER_CONCURRENCY": "1"}
    )
    arrived = time.time() - 100
    results = [sender.send({"args": {"behaviour": HELD}}, arrived + number) for number in range(5)]
    # The first look is at once, before the first message is taken or just after it.
    running = worker(
        pool=pool, env=env | {f"FORWARDER_{name}": value for name, value in page.settings.items()}
    )
    running.wait_ready()
    wait_until(lambda: (page.value("queue_depth", queue=queue_name) or 0) in (4, 5), "no depth")
    oldest_s = page.value("queue_oldest_seconds", queue=queue_name)
    if broker == "redis":
        assert oldest_s is not None
        assert 90 < oldest_s < 100 + PATIENCE_S
    else:
        assert oldest_s is None
    if broker == "sqs":
        calls = page.sums("aws_calls_total")
        assert calls[frozenset({"sqs", "GetQueueAttributes"})] >= 1
        assert calls[frozenset({"sqs", "ReceiveMessage"})] >= 1
    model_server.control(release=True)
    for result in results:
        result.get(timeout=PATIENCE_S)
