"""A worker that loses a part of itself: a child, its file descriptors, its time."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery.result import AsyncResult

from forwarder.testing.processes import family
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, asked, idle, total, wait_until

if TYPE_CHECKING:
    from forwarder.testing.worker import Worker


def asking(worker: Worker, model_server: ModelServer) -> list[psutil.Process]:
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
    stopping: bool, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    running = redis_scene.ready("prefork", MAX_DELIVERIES="1", DRAIN_TIMEOUT_S="60")
    first = redis_scene.send(request_id="first", numbers=[1], behaviour=HELD)
    model_server.wait_in_flight(1)
    (victim,) = asking(running, model_server)
    second = redis_scene.send(request_id="second", numbers=[2], behaviour=HELD)
    model_server.wait_in_flight(2)
    if stopping:
        os.kill(running.pid, signal.SIGTERM)
        running.wait_for_log("drain_start")

    victim.kill()

    if stopping:
        wait_until(lambda: redis_scene.queued() == 1, "its task is given back")
    else:
        dead_lettered(first)
    model_server.control(release=True)
    assert total(second) == 2
    if stopping:
        assert running.wait_exit() == 0
        assert "handed_back" not in running.log()
        redis_scene.start("prefork", MAX_DELIVERIES="1")
        dead_lettered(first)
    assert model_server.stats()["by_id"] == {"first": 1, "second": 1}
    assert total(redis_scene.send(numbers=[3])) == 3


def dead_lettered(result: AsyncResult[Any]) -> None:
    with pytest.raises(Exception, match="delivered 2 times"):
        result.get(timeout=PATIENCE_S)


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
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    running = redis_scene.ready(pool, MAX_DELIVERIES="1")
    total(redis_scene.send())
    time.sleep(1)  # its other connections are made by then
    main = psutil.Process(running.pid)
    with ExitStack() as stack:
        for process in family(running.pid):
            stack.enter_context(no_more_descriptors(process))
        results = [redis_scene.send(request_id=str(n), numbers=[n]) for n in range(6)]
        spent_s = -cpu_s(main)
        time.sleep(4)
        spent_s += cpu_s(main)
    assert spent_s < 2
    assert [total(result) for result in results] == list(range(6))
    assert {asked(model_server, str(n)) for n in range(6)} == {1}
    assert running.stop() == 0


def test_a_worker_that_cannot_replace_a_dead_child_finishes_what_runs_and_ends_with_1(
    redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Whatever keeps the worker running starts one that has none of the old one's leaks."""
    running = redis_scene.ready("prefork", DRAIN_TIMEOUT_S="60")
    killed = redis_scene.send(request_id="killed", numbers=[1], behaviour=HELD)
    model_server.wait_in_flight(1)
    (victim,) = asking(running, model_server)
    other = redis_scene.send(request_id="other", numbers=[2], behaviour=HELD)
    model_server.wait_in_flight(2)
    with no_more_descriptors(psutil.Process(running.pid)):
        victim.kill()
        running.wait_for_log("drain_start")
        model_server.control(release=True)
        assert running.wait_exit() == 1
    assert total(other) == 2
    assert redis_scene.queued() == 1
    redis_scene.start("prefork")
    assert total(killed) == 1
    assert model_server.stats()["by_id"] == {"killed": 2, "other": 1}


# --- a worker is frozen for longer than its lease -------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_slept_past_its_lease_drops_the_task_that_a_peer_has_done(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    frozen = redis_scene.ready(pool, VISIBILITY_TIMEOUT_S="2")
    model_server.control(behaviour=HELD)
    result = redis_scene.send(request_id="slept", numbers=[5])
    model_server.wait_in_flight(1)
    model_server.control(behaviour={})
    os.killpg(frozen.pid, signal.SIGSTOP)
    try:
        peer = redis_scene.start(pool, VISIBILITY_TIMEOUT_S="2")
        assert total(result) == 5
        assert peer.stop() == 0
    finally:
        os.killpg(frozen.pid, signal.SIGCONT)

    wait_until(lambda: idle(model_server))
    frozen.wait_for_log(f"lease_lost task_id={result.id}")
    assert total(redis_scene.send(numbers=[6])) == 6
    assert f"task_done task_id={result.id}" not in frozen.log()
    assert f"task_done task_id={result.id}" in peer.log()
    assert asked(model_server, "slept") == 2
    assert redis_scene.queued() == 0
    assert frozen.stop() == 0
