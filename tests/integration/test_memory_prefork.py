"""A prefork pool in a real memory cgroup grows with a burst and stays within its limit; stock does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest

from benchmarks.memory_burst import Bench, Burst, NoCgroup
from forwarder.testing.services import ModelServer, Valkey

#: Children of about 105 MB once they have worked: 7 fit below 70 % of the limit, less one, 9 into all of it.
LIMIT_MB, GROW_MB, CAP = 1000, 80, 5
TASKS, SLEEP_S = 60, 1.0
#: Every machine is faster.
TIMEOUT_S = 120.0
SAFE = 0.75


@pytest.fixture
def bench(valkey: Valkey, model_server: ModelServer) -> Bench:
    return Bench(
        valkey=valkey, model_server=model_server, tasks=TASKS, sleep_s=SLEEP_S, grow_mb=GROW_MB,
        limit_mb=LIMIT_MB,
    )  # fmt: skip


def run(bench: Bench, args: list[str], missing: Callable[[str], NoReturn], *, stop_at_kill: bool) -> Burst:
    try:
        return bench.run("burst", args, stop_at_kill=stop_at_kill, timeout_s=TIMEOUT_S)
    except NoCgroup as error:
        missing(str(error))


def test_a_burst_makes_the_pool_grow_to_what_its_memory_allows_and_kills_nothing(
    bench: Bench, missing: Callable[[str], NoReturn]
) -> None:
    burst = run(bench, ["--autoscale", "100,2"], missing, stop_at_kill=False)
    assert burst.done == TASKS, burst.log[-3000:]
    assert burst.kills == 0
    assert burst.peak < SAFE
    assert burst.children >= CAP - 1
    assert ("block", "cap") in burst.decisions() or ("hold", "memory_above_low") in burst.decisions()


def test_children_that_end_with_each_task_are_sized_and_counted_all_the_same(
    bench: Bench, missing: Callable[[str], NoReturn]
) -> None:
    args = ["--autoscale", "100,2", "--max-tasks-per-child", "1"]
    burst = run(bench, args, missing, stop_at_kill=False)
    assert burst.done == TASKS, burst.log[-3000:]
    assert burst.kills == 0
    assert burst.peak < SAFE
    assert burst.children >= CAP - 1


def test_stock_celerys_autoscaler_is_killed_by_the_same_burst(
    bench: Bench, missing: Callable[[str], NoReturn]
) -> None:
    burst = run(bench, ["--stock", "--autoscale", "100,2"], missing, stop_at_kill=True)
    assert burst.kills > 0, f"{burst.done} done with {burst.children} children, {burst.peak:.2f} of the limit"
