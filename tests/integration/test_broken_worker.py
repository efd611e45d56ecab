"""A worker that loses a part of itself: a child, its file descriptors, its time."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from forwarder.testing.processes import family
from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

pytestmark = pytest.mark.timeout(90)

POOLS = ["prefork", "gevent"]
#: An answer that takes 20 s to come, and tells the model server byte by byte whether anybody still reads.
SLOW = {"trickle_head_s": 0.3}
VISIBILITY_S = 2


def settings(valkey: Valkey, model_server: ModelServer, **more: str) -> dict[str, str]:
    return {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        **model_server.env,
        **more,
    }


def queued(sender: Producer) -> int:
    backend: Any = sender.app.backend
    return int(backend.client.llen(sender.queue))


def wait_until(probe: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not probe():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def asking(worker: Any, model_server: ModelServer) -> list[psutil.Process]:
    """Return the worker's processes that are connected to the model server."""
    return [
        process
        for process in family(worker.pid)
        if any(
            connection.raddr[1:] == (model_server.port,) for connection in process.net_connections(kind="tcp")
        )
    ]


# --- a child dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("stopping", [False, True], ids=["running", "stopping"])
def test_a_child_that_is_killed_costs_its_own_task_a_delivery_and_no_other(
    stopping: bool, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    env = settings(valkey, model_server, FORWARDER_MAX_DELIVERIES="1")
    running = worker(pool="prefork", env=env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    first = sender.send({"args": {"id": "first", "numbers": [1], "behaviour": {"sleep_s": 4}}})
    model_server.wait_in_flight(1)
    (victim,) = asking(running, model_server)
    second = sender.send({"args": {"id": "second", "numbers": [2], "behaviour": {"sleep_s": 4}}})
    model_server.wait_in_flight(2)
    if stopping:
        os.kill(running.pid, signal.SIGTERM)
        time.sleep(1)

    victim.kill()

    assert second.get(timeout=20)["result"]["sum"] == 2
    if stopping:
        assert running.wait_exit() == 0
        assert "handed_back" not in running.log()
        assert queued(sender) == 1
        worker(pool="prefork", env=env)
    with pytest.raises(Exception, match="delivered 2 times"):
        first.get(timeout=30)
    assert model_server.stats()["by_id"] == {"first": 1, "second": 1}
    assert sender.send({"args": {"numbers": [3]}}).get(timeout=30)["result"]["sum"] == 3


# --- file descriptors are exhausted ---------------------------------------------------------


@contextmanager
def no_more_descriptors(process: psutil.Process) -> Iterator[None]:
    soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (3, hard))  # also what gets free can't be opened again
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_can_open_nothing_goes_on_with_what_it_has_and_does_not_spin(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    # On a slow machine the wait takes many deliveries.
    running = worker(pool=pool, env=settings(valkey, model_server) | {"FORWARDER_MAX_DELIVERIES": "1000"})
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    sender.send({"args": {}}).get(timeout=20)
    time.sleep(1)  # its other connections are made by then
    main = psutil.Process(running.pid)
    with ExitStack() as stack:
        for process in family(running.pid):
            stack.enter_context(no_more_descriptors(process))
        results = [sender.send({"args": {"id": str(n), "numbers": [n]}}) for n in range(6)]
        spent_s = -cpu_s(main)
        time.sleep(4)
        spent_s += cpu_s(main)
    assert spent_s < 2
    assert [result.get(timeout=30)["result"]["sum"] for result in results] == list(range(6))
    assert {model_server.stats()["by_id"][str(n)] for n in range(6)} == {1}
    assert running.stop() == 0


def test_a_worker_that_cannot_replace_a_dead_child_finishes_what_runs_and_ends_with_1(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Whatever keeps the worker running starts one that has none of the old one's leaks."""
    env = settings(valkey, model_server)
    running = worker(pool="prefork", env=env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    killed = sender.send({"args": {"id": "killed", "numbers": [1], "behaviour": {"sleep_s": 3}}})
    model_server.wait_in_flight(1)
    (victim,) = asking(running, model_server)
    other = sender.send({"args": {"id": "other", "numbers": [2], "behaviour": {"sleep_s": 3}}})
    model_server.wait_in_flight(2)
    with no_more_descriptors(psutil.Process(running.pid)):
        victim.kill()
        assert running.wait_exit() == 1
    assert other.get(timeout=1)["result"]["sum"] == 2
    assert queued(sender) == 1
    worker(pool="prefork", env=env)
    assert killed.get(timeout=30)["result"]["sum"] == 1
    assert model_server.stats()["by_id"] == {"killed": 2, "other": 1}


# --- a worker is frozen for longer than its lease -------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_slept_past_its_lease_drops_the_task_that_a_peer_has_done(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    env = settings(valkey, model_server, FORWARDER_VISIBILITY_TIMEOUT_S=str(VISIBILITY_S))
    frozen = worker(pool=pool, env=env)
    frozen.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    model_server.control(behaviour=SLOW)
    result = sender.send({"args": {"id": "slept", "numbers": [5]}})
    model_server.wait_in_flight(1)
    model_server.control(behaviour={})
    os.killpg(frozen.pid, signal.SIGSTOP)
    try:
        peer = worker(pool=pool, env=env)
        assert result.get(timeout=30)["result"]["sum"] == 5
        assert peer.stop() == 0
    finally:
        os.killpg(frozen.pid, signal.SIGCONT)

    assert wait_until(lambda: model_server.stats()["in_flight"] == 0, 3)
    assert f"lease_lost task_id={result.id}" in frozen.log()
    assert sender.send({"args": {"numbers": [6]}}).get(timeout=20)["result"]["sum"] == 6
    assert f"task_done task_id={result.id}" not in frozen.log()
    assert f"task_done task_id={result.id}" in peer.log()
    assert model_server.stats()["by_id"]["slept"] == 2
    assert queued(sender) == 0
    assert frozen.stop() == 0
