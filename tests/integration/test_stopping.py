"""Stopping: what is in flight is finished or handed back, in bounded time, on both pools."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from forwarder.settings.coherence import ENDING_S
from forwarder.testing.processes import wait_gone
from forwarder.testing.services import CHECKOUT, ModelServer
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, idle, total, wait_until

if TYPE_CHECKING:
    from forwarder.testing.worker import Worker
    from tests.integration.conftest import StartWorker


def stop(worker: Worker, *numbers: int) -> tuple[int, float]:
    """Send the signals, half a second apart; return the exit code and the seconds after the last."""
    for number in numbers[:-1]:
        os.kill(worker.pid, number)
        time.sleep(0.5)
    started = time.monotonic()
    os.kill(worker.pid, numbers[-1])
    return worker.wait_exit(), time.monotonic() - started


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("ddtrace", [False, True], ids=["plain", "ddtrace"])
def test_what_does_not_finish_in_time_goes_back_uncounted_and_is_done_by_the_next_worker(
    pool: str, ddtrace: bool, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """With one delivery allowed, one that counted would make the next one a dead one."""
    running = redis_scene.ready(pool, ddtrace=ddtrace, DRAIN_TIMEOUT_S="2", MAX_DELIVERIES="1")
    results = [redis_scene.send(numbers=[n], behaviour=HELD) for n in range(2)]
    model_server.wait_in_flight(2)
    children = [psutil.Process(pid) for pid in running.children()]

    code, took_s = stop(running, signal.SIGTERM)

    assert code == 0
    assert 2 <= took_s < 2 + ENDING_S
    assert "handed_back number=2" in running.log()
    assert wait_gone(children, timeout_s=PATIENCE_S)
    wait_until(lambda: idle(model_server))
    assert redis_scene.queued() == 2
    model_server.control(release=True)
    redis_scene.start(pool, MAX_DELIVERIES="1")
    assert [total(result) for result in results] == [0, 1]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "numbers", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)], ids=str
)
def test_a_second_signal_or_sigquit_hands_back_at_once(
    numbers: tuple[int, ...], pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Stock, SIGQUIT under gevent acks what it kills: it is gone, without a result."""
    running = redis_scene.ready(pool, DRAIN_TIMEOUT_S="60")
    result = redis_scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)

    code, took_s = stop(running, *numbers)

    assert code == 0
    assert took_s < ENDING_S
    wait_until(lambda: idle(model_server))
    assert redis_scene.queued() == 1
    assert result.state == "PENDING"


@pytest.mark.measured
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_finishes_in_time_is_stored_and_acked(
    number: int, pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Stock, SIGHUP restarts the process."""
    running = redis_scene.ready(pool, DRAIN_TIMEOUT_S="60")
    result = redis_scene.send(numbers=[3], behaviour=HELD)
    model_server.wait_in_flight(1)
    os.kill(running.pid, number)
    running.wait_for_log("drain_start in_flight=1")
    model_server.control(release=True)
    assert running.wait_exit() == 0
    assert "handed_back" not in running.log()
    assert total(result) == 3
    assert redis_scene.held() == 0
    assert model_server.stats()["requests"] == 1


@pytest.mark.parametrize("pool", POOLS)
def test_what_finishes_beside_many_that_do_not_is_acked_before_the_drain_is_over(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Stock, prefork sleeps half a second at each child that runs before it reads the next."""
    running = redis_scene.ready(pool, CONCURRENCY="24", DRAIN_TIMEOUT_S="60")
    for n in range(24):
        # Four are released, the others need more than a minute.
        redis_scene.send(behaviour=HELD if n < 4 else {"trickle_head_s": 0.5})
    model_server.wait_in_flight(24)
    os.kill(running.pid, signal.SIGTERM)
    running.wait_for_log("drain_start in_flight=24")
    time.sleep(2)  # the pool is waited for by then
    model_server.control(release=True)
    wait_until(lambda: redis_scene.held() == 20, "acked while the others run; one stock round is 10 s", 5)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait_exit() == 0
    assert running.log().count("task_done") == 4
    assert redis_scene.queued() == 20


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_waits_for_its_eta_goes_back_at_once(pool: str, redis_scene: RedisScene) -> None:
    running = redis_scene.ready(pool, DRAIN_TIMEOUT_S="60")
    redis_scene.sender.send({"args": {}}, countdown=3600)
    wait_until(lambda: redis_scene.queued() == 0)
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 0
    assert took_s < ENDING_S
    assert redis_scene.queued() == 1


@pytest.mark.parametrize("pool", POOLS)
def test_the_remote_command_drains_as_the_signal_does(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    running = redis_scene.ready(pool, DRAIN_TIMEOUT_S="2")
    redis_scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    redis_scene.sender.app.control.shutdown()
    assert running.wait_exit() == 0
    assert redis_scene.queued() == 1


def test_a_child_does_not_outlive_its_killed_worker(
    redis_scene: RedisScene, model_server: ModelServer
) -> None:
    """Its call would go on beside the one of the worker that takes over."""
    running = redis_scene.ready("prefork")
    redis_scene.send(behaviour=HELD)
    model_server.wait_in_flight(1)
    children = [psutil.Process(pid) for pid in running.children()]
    os.kill(running.pid, signal.SIGKILL)
    assert wait_gone(children, timeout_s=PATIENCE_S)
    wait_until(lambda: idle(model_server))


def hanging(tmp_path: Path, how: str) -> dict[str, str]:
    """Return an environment in which the worker's process hangs in an exit hook."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, ctypes, time\natexit.register(lambda: {how})\n"
    )
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"}


@pytest.mark.parametrize("pool", POOLS)
def test_a_main_thread_that_hangs_on_its_way_out_is_left_behind(
    pool: str, redis_scene: RedisScene, worker: StartWorker, tmp_path: Path
) -> None:
    running = worker(pool=pool, env=redis_scene.env | hanging(tmp_path, "time.sleep(1000)"))
    running.wait_ready()
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 0
    assert took_s < ENDING_S


def test_a_process_that_hangs_in_c_is_ended_by_the_watchdog_which_says_where(
    redis_scene: RedisScene, worker: StartWorker, tmp_path: Path
) -> None:
    """With the interpreter lock held, as in dd-trace-py#13004: no Python code runs any more."""
    env = redis_scene.env | hanging(tmp_path, "ctypes.PyDLL(None).sleep(1000)")
    running = worker(pool="prefork", env=env | {"FORWARDER_DRAIN_TIMEOUT_S": "1"})
    running.wait_ready()
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 1
    assert took_s < 1 + ENDING_S + 4, "the drain, the watchdog, and a slow end"
    assert "sitecustomize.py" in running.log()
