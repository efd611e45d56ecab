"""The prefork pool at its end: a child that has something to say is not kept waiting by the others."""

from __future__ import annotations

import gc
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import asynpool, prefork

from forwarder.prefork_pool import ROUND_S, PreforkPool, PromptResults


class Pipe:
    """A child's results, as they lie in its pipe."""

    def __init__(self, *results: str, broken: bool = False) -> None:
        self.results = list(results)
        self.broken = broken

    def poll(self, timeout_s: float) -> bool:
        if self.broken:
            raise OSError
        return bool(self.results)

    def recv(self) -> str:
        return self.results.pop(0)


class Children:
    """The children's pipes around a handler that is not started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pipes: Pipe) -> None:
        self.paused_s = 0.0
        self.heard: list[str] = []
        self.removed: list[int] = []
        self.index = {
            fd: SimpleNamespace(outq=SimpleNamespace(_reader=pipe)) for fd, pipe in enumerate(pipes)
        }
        self.handler: Any = PromptResults.__new__(PromptResults)
        self.handler.sleep = self.pause
        monkeypatch.setattr(asynpool, "sleep", self.pause)
        monkeypatch.setattr(asynpool, "setblocking", self.set_blocking)

    def pause(self, seconds: float) -> None:
        self.paused_s += seconds

    def set_blocking(self, pipe: Pipe, blocking: int) -> None:
        if pipe.broken:
            raise OSError

    def look(self, *fds: int) -> None:
        for fd in fds:
            self.handler._flush_outqueue(fd, self.removed.append, self.index, self.heard.append)


def test_one_round_pauses_as_long_for_many_silent_children_as_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stock, half a second each: with fifty of them a result waits for 25 s, and a drain does not."""
    children = Children(monkeypatch, *(Pipe() for _ in range(49)), Pipe("done"))
    children.look(*range(50))
    assert children.heard == ["done"]
    assert children.paused_s <= ROUND_S


def test_a_child_that_is_gone_or_whose_pipe_is_broken_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(monkeypatch, Pipe(broken=True))
    children.look(0, 7)
    assert children.removed == [0, 7]
    assert children.paused_s == 0


def test_celerys_pool_is_put_together_as_this_one_needs_it() -> None:
    """Replaced: ``ResultHandler._flush_outqueue``, and two class attributes. None of them is documented."""
    stock: Any = asynpool.ResultHandler
    parameters = list(inspect.signature(stock._flush_outqueue).parameters)
    assert parameters == ["self", "fd", "remove", "process_index", "on_state_change"]
    source = inspect.getsource(stock._flush_outqueue)
    assert "sleep(0.5)" in source, "stock no longer pauses at each child: this pool can go"
    assert "proc.outq._reader" in source
    assert "self._flush_outqueue" in inspect.getsource(stock.on_stop_not_started)
    assert asynpool.AsynPool.ResultHandler is asynpool.ResultHandler
    assert prefork.TaskPool.Pool is asynpool.AsynPool
    assert PreforkPool.Pool.ResultHandler is PromptResults


def test_what_is_there_before_the_fork_is_left_alone_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(prefork.TaskPool, "on_start", lambda pool: frozen.append(gc.get_freeze_count()))
    before = gc.get_freeze_count()
    try:
        PreforkPool.on_start(PreforkPool.__new__(PreforkPool))
    finally:
        gc.unfreeze()
    assert frozen[0] > before
