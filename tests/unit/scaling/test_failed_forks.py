"""What a fork that fails leaves of the prefork pool, and who takes the blame."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
from billiard import popen_fork

from forwarder.scaling.pool_children import PoolChildren
from forwarder.scaling.prefork_autoscaler import FORK_AGAIN_S, PERIOD_S
from tests.unit.scaling.prefork_scene import DECISIONS, Scene


def test_a_task_that_comes_makes_no_decision_and_takes_no_blame() -> None:
    scene = Scene()
    scene.inner.forks_max = 2
    scene.work(mb=10)
    for _ in range(3):
        scene.now_s += PERIOD_S
        scene.autoscaler.maybe_scale(object())
    assert scene.counts.value(DECISIONS, action="grow", reason="demand") == 0
    assert scene.inner._processes == 2


@pytest.mark.parametrize("error", [BlockingIOError(11, "no more"), MemoryError()])
def test_a_fork_that_fails_leaves_the_pool_as_it_is_and_is_tried_again_after_a_minute(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.inner.fork_error, scene.inner.forks_max = error, 3
    scene.work(mb=1)
    assert scene.tick() == 3, "one of two"
    assert scene.inner._putlock.initial_value == len(scene.inner._pool) == scene.prefetch.value == 3
    assert sum(owner is not None for owner in scene.inner._queues.values()) == 3
    assert [record.args[0] for record in caplog.records if record.msg.startswith("autoscale_fork")] == [3]  # type: ignore[index]
    scene.inner.forks_max = 1000
    scene.work(mb=1)
    assert scene.tick(int(FORK_AGAIN_S) - 1) == 3
    assert scene.count("hold", "fork_failed") == FORK_AGAIN_S - 1
    assert scene.tick() == 6


def test_a_fork_that_fails_costs_no_place_whose_child_has_ended() -> None:
    scene = Scene()
    scene.inner.forks_max = 2
    scene.work(mb=1)
    scene.inner._pool[0].told_to_end = True
    scene.now_s += PERIOD_S
    scene.autoscaler.maybe_scale()
    assert (scene.inner._processes, len(scene.inner._pool)) == (2, 1)


def test_a_fork_that_fails_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    def refuse() -> int:
        raise BlockingIOError(11, "no more")

    ends: list[int] = []

    def pipe() -> tuple[int, int]:
        ends.extend(end.detach() for end in socket.socketpair())
        return ends[0], ends[1]

    monkeypatch.setattr(popen_fork, "os", SimpleNamespace(fork=refuse, pipe=pipe))
    with pytest.raises(OSError, match="no more") as caught:
        popen_fork.Popen(SimpleNamespace())  # type: ignore[arg-type]
    PoolChildren(scene.pool).forget_unborn(caught.value, at_least=2)
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
