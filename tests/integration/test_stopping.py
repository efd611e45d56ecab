"""Stopping: what is in flight is finished or handed back, in bounded time, on both pools."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from forwarder.testing.processes import wait_gone
from forwarder.testing.producer import Producer
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

pytestmark = pytest.mark.timeout(90)

POOLS = ["prefork", "gevent"]
#: An answer that takes 20 s to come, and tells the model server byte by byte whether anybody still reads.
SLOW = {"trickle_head_s": 0.3}
#: Seconds that a worker may need beyond its drain: 3 s for its main thread, and two slow cores.
ENDING_S = 7.0


def settings(valkey: Valkey, model_server: ModelServer, **more: str) -> dict[str, str]:
    return {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        # A delivery that counted would make the next one a dead one.
        "FORWARDER_MAX_DELIVERIES": "1",
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


def stop(worker: Any, *numbers: int) -> tuple[int, float]:
    """Send the signals, half a second apart; return the exit code and the seconds it took."""
    for number in numbers:
        started = time.monotonic()
        os.kill(worker.pid, number)
        time.sleep(0.5)
    return worker.wait_exit(), time.monotonic() - started


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("ddtrace", [False, True], ids=["plain", "ddtrace"])
def test_what_does_not_finish_in_time_goes_back_uncounted_and_is_done_by_the_next_worker(
    pool: str,
    ddtrace: bool,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    env = settings(valkey, model_server, FORWARDER_DRAIN_TIMEOUT_S="2")
    running = worker(pool=pool, env=env, ddtrace=ddtrace)
    running.wait_ready()
    model_server.control(behaviour=SLOW)
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(2)]
    model_server.wait_in_flight(2)
    children = [psutil.Process(pid) for pid in running.children()]

    code, took_s = stop(running, signal.SIGTERM)

    assert code == 0
    assert 2 <= took_s < 2 + ENDING_S
    assert "handed_back number=2" in running.log()
    assert wait_gone(children, timeout_s=2)
    assert wait_until(lambda: model_server.stats()["in_flight"] == 0, 3)
    assert queued(sender) == 2
    model_server.control(behaviour={})
    worker(pool=pool, env=env)
    assert [result.get(timeout=30)["result"]["sum"] for result in results] == [0, 1]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "numbers", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)], ids=str
)
def test_a_second_signal_or_sigquit_hands_back_at_once(
    numbers: tuple[int, ...],
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    """Stock, SIGQUIT under gevent acks what it kills: it is gone, without a result."""
    running = worker(pool=pool, env=settings(valkey, model_server, FORWARDER_DRAIN_TIMEOUT_S="60"))
    running.wait_ready()
    model_server.control(behaviour=SLOW)
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"numbers": [1]}})
    model_server.wait_in_flight(1)

    code, took_s = stop(running, *numbers)

    assert code == 0
    assert took_s < ENDING_S
    assert wait_until(lambda: model_server.stats()["in_flight"] == 0, 3)
    assert queued(sender) == 1
    assert result.state == "PENDING"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_finishes_in_time_is_stored_and_acked(
    number: int,
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    """Stock, SIGHUP restarts the process."""
    running = worker(pool=pool, env=settings(valkey, model_server))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    result = sender.send({"args": {"numbers": [3], "behaviour": {"sleep_s": 2}}})
    model_server.wait_in_flight(1)
    code, took_s = stop(running, number)
    assert code == 0
    assert took_s < 2 + ENDING_S
    assert result.get(timeout=1)["result"]["sum"] == 3
    assert queued(sender) == 0
    worker(pool=pool, env=settings(valkey, model_server)).wait_ready()
    assert model_server.stats()["requests"] == 1


@pytest.mark.parametrize("pool", POOLS)
def test_what_finishes_beside_many_that_do_not_is_acked_before_the_drain_is_over(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Stock, prefork sleeps half a second at each child that runs before it reads the next."""
    more = {"FORWARDER_CONCURRENCY": "12", "FORWARDER_DRAIN_TIMEOUT_S": "4"}
    running = worker(pool=pool, env=settings(valkey, model_server, **more))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    for n in range(12):
        sender.send({"args": {"behaviour": {"sleep_s": 2.5} if n % 2 else SLOW}})
    model_server.wait_in_flight(12)
    code, _ = stop(running, signal.SIGTERM)
    assert code == 0
    assert running.log().count("task_done") == 6
    assert queued(sender) == 6


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_waits_for_its_eta_goes_back_at_once(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server, FORWARDER_DRAIN_TIMEOUT_S="60"))
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    sender.send({"args": {"numbers": [1]}}, countdown=3600)
    assert wait_until(lambda: queued(sender) == 0, 5)
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 0
    assert took_s < ENDING_S
    assert queued(sender) == 1


@pytest.mark.parametrize("pool", POOLS)
def test_the_remote_command_drains_as_the_signal_does(
    pool: str, worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    running = worker(pool=pool, env=settings(valkey, model_server, FORWARDER_DRAIN_TIMEOUT_S="2"))
    running.wait_ready()
    model_server.control(behaviour=SLOW)
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    sender.send({"args": {"numbers": [1]}})
    model_server.wait_in_flight(1)
    sender.app.control.shutdown()
    assert running.wait_exit(timeout_s=15) == 0
    assert queued(sender) == 1


def test_a_child_does_not_outlive_its_killed_worker(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> None:
    """Its call would go on beside the one of the worker that takes over."""
    running = worker(pool="prefork", env=settings(valkey, model_server))
    running.wait_ready()
    model_server.control(behaviour=SLOW)
    producer(broker_url=valkey.url, backend=valkey.url).send({"args": {"numbers": [1]}})
    model_server.wait_in_flight(1)
    children = [psutil.Process(pid) for pid in running.children()]
    os.kill(running.pid, signal.SIGKILL)
    assert wait_gone(children, timeout_s=10)
    assert wait_until(lambda: model_server.stats()["in_flight"] == 0, 3)


def hanging(tmp_path: Path, how: str) -> dict[str, str]:
    """Return an environment in which the worker's process hangs in an exit hook."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, ctypes, time\natexit.register(lambda: {how})\n"
    )
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"}


@pytest.mark.parametrize("pool", POOLS)
def test_a_main_thread_that_hangs_on_its_way_out_is_left_behind(
    pool: str, worker: StartWorker, valkey: Valkey, model_server: ModelServer, tmp_path: Path
) -> None:
    env = settings(valkey, model_server) | hanging(tmp_path, "time.sleep(1000)")
    running = worker(pool=pool, env=env)
    running.wait_ready()
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 0
    assert took_s < ENDING_S


def test_a_process_that_hangs_in_c_is_ended_by_the_watchdog_which_says_where(
    worker: StartWorker, valkey: Valkey, model_server: ModelServer, tmp_path: Path
) -> None:
    """With the interpreter lock held, as in dd-trace-py#13004: no Python code runs any more."""
    env = settings(valkey, model_server, FORWARDER_DRAIN_TIMEOUT_S="1")
    running = worker(pool="prefork", env=env | hanging(tmp_path, "ctypes.PyDLL(None).sleep(1000)"))
    running.wait_ready()
    code, took_s = stop(running, signal.SIGTERM)
    assert code == 1
    assert took_s < 15
    assert "sitecustomize.py" in running.log()
