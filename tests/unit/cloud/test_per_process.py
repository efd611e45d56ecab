"""A value per process: made once, and made anew after a fork."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from forwarder.cloud.per_process import PerProcess


def test_a_value_is_made_at_its_first_use_and_once_for_all_threads() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        threading.Event().wait(0.02)  # long enough for the others to arrive
        return made[-1]

    value = PerProcess(make)
    assert made == []
    at_once = threading.Barrier(20)

    def use(_: int) -> object:
        at_once.wait()
        return value.get()

    with ThreadPoolExecutor(20) as threads:
        assert set(threads.map(use, range(20))) == {made[0]}
    assert len(made) == 1


def test_a_make_that_fails_is_tried_again() -> None:
    tries: list[int] = []

    def make() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no")
        return "made"

    value = PerProcess(make)
    with pytest.raises(OSError, match="no"):
        value.get()
    assert value.get() == "made"


def test_a_forked_process_makes_its_own_even_when_the_fork_came_in_the_middle_of_making() -> None:
    pids: PerProcess[int] = PerProcess(os.getpid)
    parents = pids.get()
    with pids._lock:  # as if another thread of the parent were making the value
        child = os.fork()
        if child == 0:
            os._exit(0 if pids.get() == os.getpid() != parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pids.get() == parents


def test_a_value_that_was_never_made_is_not_made_in_order_to_be_closed() -> None:
    closed: list[str] = []
    value = PerProcess(lambda: "made")
    value.if_made(closed.append)
    assert closed == []
    value.get()
    value.if_made(closed.append)
    assert closed == ["made"]
