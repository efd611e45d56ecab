"""What ``--auto`` does between the lease book and the autoscaler, without a thread."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.leases import LeaseBook
from forwarder.scaling.green_autoscaler import GreenAutoscaler
from forwarder.scaling.prefork_autoscaler import MemoryAutoscaler
from forwarder.telemetry.metrics import ProcessMetrics
from forwarder.tuning.at_work import AutoTuner, refusals
from forwarder.tuning.auto import Auto, Bound

TASK_S = 0.5


class Scene:
    """A worker whose slots are always full, before a server that serves so many at a time."""

    def __init__(self, *, serves: int, most: int = 64) -> None:
        self.serves = serves
        self.now_s = 0.0
        self.processes = 64
        self.least = 4
        self.held_back = False
        self.acked: Callable[[Any], object] = lambda delivery: None
        self.held_since: deque[float] = deque()
        self.credit = 0.0  # tasks that the server has worked on
        self.refused = (0, 0)
        self.tuner = AutoTuner(
            auto=Auto(least=4),
            scaler=self,
            book=self,
            bound=lambda message_bytes: Bound(most, "MAX of --autoscale"),
            refusals=lambda: self.refused,
            unforked=nullcontext(),
            monotonic=lambda: self.now_s,
        )

    def update(self, max: int | None = None, min: int | None = None) -> None:  # noqa: A002 - Celery's names
        assert max is not None
        self.least = self.least if min is None else min
        if max < self.least:  # as the autoscaler of the prefork pool
            raise ValueError
        self.processes = max

    def held(self) -> list[Any]:
        return [SimpleNamespace(slot_s=since_s) for since_s in self.held_since]

    def second(self) -> None:
        """Let a second pass: the server works on the oldest."""
        for _ in range(10):
            self.now_s += 0.1
            while len(self.held_since) < self.processes:
                self.held_since.append(self.now_s)
            self.credit += min(self.serves, len(self.held_since)) * 0.1 / TASK_S
            while self.credit >= 1:
                self.credit -= 1
                self.acked(SimpleNamespace(slot_s=self.held_since.popleft(), payload_bytes=1000))
        self.tuner.round()

    def settle(self, caplog: pytest.LogCaptureFixture, within_s: int = 200) -> int:
        self.tuner.begin()
        for _ in range(within_s):
            self.second()
            if "auto_settled" in caplog.text:
                return self.processes
        raise AssertionError(caplog.text)


@pytest.mark.parametrize(("serves", "found"), [(16, 16), (4, 4), (1, 4), (1000, 64)])
def test_the_autoscaler_gets_the_bound_that_the_tasks_call_for(
    serves: int, found: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert Scene(serves=serves).settle(caplog) == found


def test_messages_that_are_held_until_their_eta_fill_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(serves=16)
    scene.tuner.begin()
    early = [SimpleNamespace(slot_s=None)] * 100
    scene.held = lambda: early  # type: ignore[method-assign]
    for _ in range(60):  # one task a second, in four slots
        scene.now_s += 1
        scene.acked(SimpleNamespace(slot_s=scene.now_s - TASK_S, payload_bytes=1000))
        scene.tuner.round()
    assert "auto_measures" not in caplog.text
    assert "auto_failed" not in caplog.text


def test_bounds_that_remote_control_set_hold_until_the_next_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(serves=16)
    scene.tuner.begin()
    scene.least = 20
    for _ in range(200):
        scene.second()
    assert "auto_failed" not in caplog.text
    assert scene.processes == 16
    assert scene.least == 4


def test_it_begins_with_the_least(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(serves=16)
    scene.tuner.begin()
    assert scene.processes == 4


def test_each_step_is_told_with_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Scene(serves=1000, most=10).settle(caplog)
    told = [record.message for record in caplog.records]
    assert told[0] == "auto_begins slots=4 most=10 bound='MAX of --autoscale'"
    assert re.fullmatch(
        r"auto_measures slots=8 before=4 per_s=8 task_s=0\.\d message_bytes=1000 why='4 at .* 8 tasks/s'",
        told[1],
    )
    assert told[-1].startswith("auto_settled slots=10 before=10 per_s=20 ")


def test_a_server_that_refuses_from_some_number_on_gets_no_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(serves=1000)
    scene.tuner.begin()
    for _ in range(200):
        scene.second()
        if scene.processes > 16:
            scene.refused = (scene.refused[0] + 100, 0)
    assert scene.processes == 16


def test_an_error_is_told_once_and_the_next_look_comes(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(serves=16)
    scene.tuner.begin()
    scene.held = lambda: 1 / 0  # type: ignore[assignment,return-value]
    scene.second()
    scene.second()
    assert [record.message for record in caplog.records] == ["auto_failed error=ZeroDivisionError"]


def test_refusals_are_read_from_the_workers_metrics() -> None:
    metrics = ProcessMetrics()
    for status in ("200", "200", "503", "429", "500", "404", "404"):
        metrics.observe("forwarder_inference_seconds", 0.1, status=status)
    metrics.observe("forwarder_task_seconds", 0.1, queue="q")
    assert refusals(metrics) == (2, 3)


def test_both_autoscalers_and_the_book_have_what_is_asked_of_them() -> None:
    for autoscaler in (GreenAutoscaler, MemoryAutoscaler):
        assert {"update", "processes", "held_back"} <= set(dir(autoscaler))
    assert {"acked", "held"} <= set(dir(LeaseBook(lambda: None)))  # type: ignore[arg-type,return-value]
