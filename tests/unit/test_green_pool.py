"""The gevent pool: every task has an end, whatever it ends with."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest
from celery.concurrency.gevent import TaskPool
from celery.exceptions import WorkerShutdown
from celery.worker.pidbox import gPidbox

from forwarder.green_pool import GreenPool

APP = SimpleNamespace(conf=SimpleNamespace(forwarder_slot_is_empty=lambda: None))


class Calls:
    """Notes the callbacks of one task."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.returned: list[Any] = []
        self.failed: list[str] = []

    def on_accepted(self, pid: int, at_s: float) -> None:
        self.accepted.append(pid)

    def on_failure(self, info: Any) -> None:
        error = info.exception
        self.failed.append(type(getattr(error, "exc", error)).__name__)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def pool() -> Iterator[GreenPool]:
    made: Any = GreenPool(limit=1, app=APP)
    made.start()
    yield made
    for number in list(made._pool._jobs):
        made.terminate_job(number)
    made.on_stop()


def apply(pool: TaskPool, calls: Calls, target: Callable[..., Any], *args: Any, **replaced: Any) -> Any:
    callbacks = {
        "callback": calls.returned.append,
        "error_callback": calls.on_failure,
        "accept_callback": calls.on_accepted,
    }
    return pool.apply_async(target, args, **{**callbacks, **replaced})


def raising(error: BaseException) -> Callable[..., Any]:
    def target(*_: Any) -> Any:
        raise error

    return target


def assert_slot_is_free(pool: Any) -> None:
    assert len(pool._pool) == 0
    assert pool._pool._semaphore.counter == 2


def run_out(pool: Any) -> None:
    """Let the pool's job come to its end, as its stop does."""
    with gevent.Timeout(5):
        pool.on_stop()


def test_what_the_target_returns_goes_to_the_callback(pool: GreenPool, calls: Calls) -> None:
    job = apply(pool, calls, lambda a, b: a + b, 1, 2)
    run_out(pool)
    assert calls.returned == [3]
    assert calls.failed == []
    assert calls.accepted == [job.number]
    assert_slot_is_free(pool)


@pytest.mark.parametrize("error", [ValueError("payload"), MemoryError(), SystemExit(1), gevent.Timeout(1)])
def test_an_exception_of_any_kind_goes_to_the_error_callback(
    error: BaseException, pool: GreenPool, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """Stock, the greenlet dies without a word and its message holds a slot for good."""
    apply(pool, calls, raising(error))
    run_out(pool)
    assert calls.failed == [type(error).__name__]
    assert calls.returned == []
    assert "payload" not in caplog.text
    assert_slot_is_free(pool)


def test_a_killed_task_calls_nothing_and_frees_its_slot(pool: GreenPool, calls: Calls) -> None:
    """Stock, it is a success, and acked."""
    ended: list[str] = []

    def target() -> None:
        try:
            gevent.sleep(60)
        finally:
            ended.append("closed")

    apply(pool, calls, target)
    gevent.sleep(0)
    pool.terminate_job(calls.accepted[0], 9)
    run_out(pool)
    assert ended == ["closed"]
    assert calls.returned == calls.failed == []
    assert_slot_is_free(pool)


def test_a_task_that_is_killed_before_it_started_never_starts(pool: GreenPool, calls: Calls) -> None:
    """Neither in a slot that is new nor in one that waits."""
    for _ in range(2):
        job = apply(pool, calls, calls.returned.append, "ran")
        pool.terminate_job(job.number, 9)
        run_out(pool)
        assert calls.accepted == calls.returned == calls.failed == []
        assert_slot_is_free(pool)
        apply(pool, Calls(), lambda: None)
        run_out(pool)


def test_a_task_that_ends_as_it_is_killed_leaves_its_end_to_no_other(pool: GreenPool, calls: Calls) -> None:
    """What kills it comes a round later, when its slot could have the next task."""

    def target() -> str:
        pool.terminate_job(calls.accepted[0], 9)
        return "first"

    apply(pool, calls, target)
    run_out(pool)
    apply(pool, calls, lambda: gevent.sleep(0.01) or "second")
    run_out(pool)
    assert calls.returned == ["first", "second"]
    assert_slot_is_free(pool)


def test_tasks_that_follow_each_other_share_a_greenlet(pool: GreenPool, calls: Calls) -> None:
    for _ in range(3):
        apply(pool, calls, gevent.getcurrent)
        run_out(pool)
    assert len(set(calls.returned)) == 1


def test_a_slot_that_waits_holds_nothing_of_its_last_task(pool: GreenPool, calls: Calls) -> None:
    job = weakref.ref(apply(pool, calls, lambda: None))
    run_out(pool)
    assert job() is None


def test_a_task_whose_ack_is_on_its_way_keeps_no_other_from_beginning(pool: GreenPool, calls: Calls) -> None:
    ack = gevent.event.Event()
    apply(pool, calls, lambda: None, callback=lambda _: ack.wait())
    apply(pool, calls, lambda: "begun")
    gevent.sleep(0)
    assert calls.returned == ["begun"]
    ack.set()
    run_out(pool)


def test_twice_as_many_as_there_are_slots_may_be_unfinished_and_the_next_waits(
    pool: GreenPool, calls: Calls
) -> None:
    pool.grow()
    held = [gevent.event.Event() for _ in range(3)]
    for event in held:
        apply(pool, calls, event.wait)
    fourth = gevent.spawn(apply, pool, calls, lambda: None)
    gevent.sleep(0)
    assert not fourth.dead
    held[0].set()
    fourth.join()
    held[1].set()
    held[2].set()
    run_out(pool)
    assert len(calls.returned) == 4


def test_tasks_that_come_at_one_moment_run_no_more_at_a_time_than_there_are_slots(
    pool: GreenPool, calls: Calls
) -> None:
    """As those do whose ETA it is: they were taken before, beside what fills the slots."""
    pool.grow()
    held = [gevent.event.Event() for _ in range(3)]
    ack = gevent.event.Event()
    for event in held:
        apply(pool, calls, event.wait, callback=lambda _: ack.wait())
    gevent.sleep(0)
    assert len(calls.accepted) == 2
    held[0].set()
    gevent.sleep(0.01)
    assert len(calls.accepted) == 3, "though the ack of the one that returned is on its way"
    pool.shrink()
    for event in (*held, ack):
        event.set()
    run_out(pool)
    assert pool._pool.running.counter == 1


def test_a_task_that_is_killed_while_it_waits_to_run_never_does(pool: GreenPool, calls: Calls) -> None:
    held = gevent.event.Event()
    apply(pool, Calls(), held.wait)
    job = apply(pool, calls, calls.returned.append, "ran")
    gevent.sleep(0)
    pool.terminate_job(job.number, 9)
    gevent.sleep(0)
    held.set()
    run_out(pool)
    assert calls.accepted == calls.returned == calls.failed == []
    assert pool._pool.running.counter == 1
    assert_slot_is_free(pool)


def test_a_task_killed_as_it_is_accepted_never_runs(pool: GreenPool, calls: Calls) -> None:
    """Its message became somebody else's while it waited, perhaps for long."""

    def accept(pid: int, at_s: float) -> None:
        pool.terminate_job(pid, 9)

    apply(pool, calls, lambda: calls.returned.append("ran"), accept_callback=accept)
    run_out(pool)
    assert calls.returned == calls.failed == []
    assert_slot_is_free(pool)


@pytest.mark.parametrize("name", ["callback", "accept_callback"])
def test_a_callback_that_raises_is_a_failure_of_the_task(name: str, pool: GreenPool, calls: Calls) -> None:
    apply(pool, calls, lambda: None, **{name: raising(OSError())})
    run_out(pool)
    assert calls.failed == ["OSError"]
    assert_slot_is_free(pool)


def test_an_error_callback_that_raises_leaks_no_slot(pool: GreenPool, calls: Calls) -> None:
    apply(pool, calls, raising(ValueError()), error_callback=raising(OSError()))
    run_out(pool)
    assert_slot_is_free(pool)
    apply(pool, calls, lambda: "next")
    run_out(pool)
    assert calls.returned == ["next"]


def test_celerys_own_stop_ends_the_worker_and_not_the_task(pool: GreenPool, calls: Calls) -> None:
    apply(pool, calls, lambda: None, callback=raising(WorkerShutdown(0)))
    # The hub raises it in the main greenlet, whichever that is in.
    with pytest.raises(WorkerShutdown):
        gevent.sleep(1)
    assert calls.failed == []


def test_celerys_time_limits_are_left_out(pool: GreenPool, calls: Calls) -> None:
    apply(pool, calls, lambda: gevent.sleep(0.01), timeout=0.001, timeout_callback=raising(OSError()))
    run_out(pool)
    assert calls.returned == [None]


def test_stock_still_loses_what_this_pool_keeps(calls: Calls) -> None:
    """The day it does not, this pool can go."""
    pool = TaskPool(limit=1)
    pool.start()
    apply(pool, calls, raising(ValueError())).join()
    assert calls.failed == []
    greenlet = apply(pool, calls, gevent.sleep, 60)
    gevent.sleep(0)
    pool.terminate_job(id(greenlet), 9)
    greenlet.join()
    assert calls.returned == [(False, None, None)]


def test_a_remote_control_that_ends_with_its_connection_is_one_line_in_the_log(
    pool: GreenPool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def loop(consumer: str) -> None:
        raise ConnectionResetError(consumer)

    pool.spawn_n(loop, "hunter2")
    gevent.sleep(0)
    assert [record.getMessage() for record in caplog.records] == [
        "remote_control_lost error=ConnectionResetError"
    ]
    assert capsys.readouterr().err == ""


def test_celery_knows_its_pool_by_what_the_slots_have() -> None:
    source = inspect.getsource(TaskPool)
    assert set(re.findall(r"self\._pool\.(\w+)", source)) == {"spawn", "join", "size", "_semaphore"}
    assert "self._quick_put = self._pool.spawn" in source  # in on_start, which is ours


def test_celery_starts_its_remote_control_through_spawn_n_alone() -> None:
    assert "c.pool.spawn_n(self.loop, c)" in inspect.getsource(gPidbox.start)
