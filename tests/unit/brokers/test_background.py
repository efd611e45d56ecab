"""Work beside Celery's loop: no fork cuts it in two, and nothing waits for it without a bound."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from forwarder.brokers.background import ForkGate, done_within, in_background, insist

#: Long for a thread that has nothing to wait for, and short for who waits that nothing happens.
MOMENT_S = 0.05
PATIENCE_S = 5.0


def forked(child: Callable[[], int], *, patience_s: float = PATIENCE_S) -> int | None:
    """Return what a child that was forked here ended with; None where it hung."""
    pid = os.fork()
    if pid == 0:
        os._exit(child())
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class Store:
    """A client that holds a lock during each call, as kombu's cached properties do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = threading.Event()
        self.stopped = threading.Event()

    def put(self) -> bool:
        with self.lock:
            self.entered.set()
            time.sleep(MOMENT_S)
        return self.stopped.is_set()

    def used_in_child(self) -> int:
        with self.lock:
            return 7


@pytest.fixture
def gate() -> ForkGate:
    made = ForkGate()
    made.guard()
    return made


@contextmanager
def stored_all_the_time(store: Store, gate: Any) -> Iterator[None]:
    """Run a thread that is in the store nearly all the time, as where message after message is refused."""
    thread = threading.Thread(
        target=insist, args=(store.put,), kwargs={"gate": gate, "pause_s": 0.001, "sleep": time.sleep}
    )
    thread.start()
    assert store.entered.wait(PATIENCE_S)
    try:
        yield
    finally:
        store.stopped.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_child_that_is_forked_while_a_thread_is_in_the_store_can_use_the_store(gate: ForkGate) -> None:
    store = Store()
    with stored_all_the_time(store, gate):
        for number in range(5):
            assert forked(store.used_in_child) == 7, f"child {number}"


def test_without_the_gate_such_a_child_hangs() -> None:
    """So that the test above is known to test something."""
    store = Store()
    with stored_all_the_time(store, nullcontext()):
        assert forked(store.used_in_child, patience_s=1.0) is None


def test_a_fork_waits_for_all_that_are_inside_and_goes_before_who_comes_later(gate: ForkGate) -> None:
    order: list[str] = []
    both_in = threading.Barrier(3)
    go_on = threading.Event()

    def early() -> None:
        with gate:
            both_in.wait(PATIENCE_S)
            go_on.wait(PATIENCE_S)
            order.append("early")

    def late() -> None:
        while "forking=True" not in repr(gate):
            time.sleep(0.001)
        go_on.set()
        with gate:
            order.append("late")

    threads = [threading.Thread(target=work) for work in (early, early, late)]
    for thread in threads:
        thread.start()
    both_in.wait(PATIENCE_S)
    assert forked(lambda: len(order)) == 2
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["early", "early", "late"]


def test_who_is_inside_may_enter_again_while_a_fork_waits(gate: ForkGate) -> None:
    entered = threading.Event()

    def nest() -> None:
        with gate:
            entered.set()
            while "forking=True" not in repr(gate):
                time.sleep(0.001)
            with gate:
                pass

    thread = threading.Thread(target=nest)
    thread.start()
    entered.wait(PATIENCE_S)
    assert forked(lambda: 0) == 0
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_thread_may_fork_from_inside_and_its_child_may_enter(gate: ForkGate) -> None:
    def enter() -> int:
        with gate:
            return 0 if repr(gate) == "<ForkGate inside=1 forking=False>" else 1

    with gate:
        assert forked(enter) == 0
    assert repr(gate) == "<ForkGate inside=0 forking=False>"


def test_nobody_waits_where_nothing_forks() -> None:
    gate = ForkGate()
    gate._changed = None  # type: ignore[assignment]  # whoever waited would fail
    with gate:
        assert repr(gate) == "<ForkGate inside=0 forking=False>"


def test_pauses_are_outside_of_the_gate(gate: ForkGate) -> None:
    seen: list[str] = []
    results = iter([False, False, True])

    def step() -> bool:
        seen.append(repr(gate))
        return next(results)

    insist(step, gate=gate, pause_s=3.0, sleep=lambda seconds: seen.append(f"{seconds} {gate!r}"))
    inside, outside = "<ForkGate inside=1 forking=False>", "3.0 <ForkGate inside=0 forking=False>"
    assert seen == [inside, outside, inside, outside, inside]


def test_work_that_hangs_is_waited_for_no_longer_than_that() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(PATIENCE_S)

    assert done_within(lambda: None, PATIENCE_S)
    assert not done_within(hang, 0.01)
    release.set()


def test_work_that_fails_is_over_and_its_error_is_named_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise OSError("payload-text")

    assert done_within(fail, PATIENCE_S)
    assert "OSError" in caplog.text
    assert "payload-text" not in caplog.text


def test_where_no_thread_is_to_be_had_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert done_within(lambda: done.append(1), 0.0)
    assert done == [1]
    with pytest.raises(RuntimeError):
        in_background(lambda: None)
