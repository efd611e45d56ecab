"""A run ends with the last result, with the first failure to send, or when nothing comes any more."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from forwarder.loadtest.figures import Sample
from forwarder.loadtest.processes import Look
from forwarder.loadtest.run import LoadTest
from forwarder.loadtest.shape import Arrival, Shape, Span
from forwarder.loadtest.target import Target
from forwarder.settings import Settings

DONE = {"status": "SUCCESS", "date_done": "2026-01-01T00:00:00+00:00"}


class World:
    """A broker and a store in memory, and a clock that only sleeping moves."""

    def __init__(self, *, answered: int = 10**9, fails: bool = False) -> None:
        self.now_s = 0.0
        self.sent: list[str] = []
        self.samples: list[Sample] = []
        self._answered = answered
        self._fails = fails
        self._tasks = 0
        self._all_sent = threading.Event()

    def send(self, payload: dict[str, Any], task_id: str) -> None:
        if self._fails:
            self._all_sent.set()
            raise ConnectionError("no broker")
        self.sent.append(task_id)
        if len(self.sent) == self._tasks:
            self._all_sent.set()

    def read(self, task_id: str) -> Mapping[str, Any] | None:
        return DONE if self.sent.index(task_id) < self._answered else None

    def sleep(self, seconds: float) -> None:
        self._all_sent.wait(5.0)  # the sender is a thread, and lives in real time
        self.now_s += seconds

    def update(self, sample: Sample) -> None:
        self.samples.append(sample)

    def look(self) -> Look | None:
        return None

    def test(self, tasks: int) -> LoadTest:
        self._tasks = tasks
        shape = Shape(
            tasks=tasks,
            sleep_s=Span(0, 0),
            payload_bytes=Span(0, 0),
            response_bytes=None,
            arrival=Arrival("burst"),
        )
        target = Target(
            title="", settings=Settings(), log=None, look=self.look, in_flight=lambda: None, limit_mb=None
        )
        source = random.Random(1)
        return LoadTest(
            shape=shape,
            target=target,
            send=self.send,
            read=self.read,
            error_code=lambda meta: None,
            watcher=self,
            payloads=shape.payloads(source),
            source=source,
            interval_s=1.0,
            stall_s=5.0,
            now=lambda: self.now_s,
            sleep=self.sleep,
        )


def test_a_run_ends_with_its_last_result() -> None:
    world = World()
    outcome = world.test(50).run()
    assert (outcome.sent, len(outcome.ended), outcome.stalled) == (50, 50, False)
    assert world.samples[0].sent == 0  # the worker at rest
    assert world.samples[-1].done == 50


def test_a_run_in_which_no_result_comes_any_more_is_given_up() -> None:
    world = World(answered=3)
    outcome = world.test(5).run()
    assert (len(outcome.ended), outcome.stalled) == (3, True)
    assert 5.0 < world.now_s < 7.0
    assert len(world.samples) >= 6  # one each second, all the while


def test_a_broker_that_is_lost_ends_the_run() -> None:
    with pytest.raises(ConnectionError):
        World(fails=True).test(5).run()
