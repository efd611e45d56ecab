"""The guard's round: memory to cap, and one log line for each change of state."""

from __future__ import annotations

import contextlib
import logging
from unittest.mock import Mock

import pytest

from forwarder.scaling import memory_guard
from forwarder.scaling.admission import Admission
from forwarder.scaling.memory_guard import CALM_ROUNDS, MemoryGuard


class Scene:
    def __init__(self, *, lowers: bool = True) -> None:
        self.admission = Admission(slots_max=10, bytes_max=100)
        self.used = 0
        self.held = 10
        self.ended = 0
        self.trims = 0
        self.freed_by_trim = 0
        self.collections = 0
        self.ticks = 0
        self.looks_left = 0
        self.error: Exception | None = None
        self.guard = MemoryGuard(
            admission=self.admission,
            limit_bytes=100,
            high=0.7,
            used_bytes=self.used_bytes,
            held=lambda: self.held,
            running=lambda: self.held,
            ended=lambda: self.ended,
            ticked=self.tick,
            unforked=contextlib.nullcontext(),
            lowers=lowers,
            trim=self.trim,
            collect=self.collect,
        )

    def used_bytes(self) -> int:
        if self.error is not None:
            raise self.error
        return self.used

    def trim(self) -> None:
        self.trims += 1
        self.used -= self.freed_by_trim

    def collect(self) -> None:
        self.collections += 1

    def tick(self) -> None:
        self.ticks += 1
        self.looks_left -= 1
        if self.looks_left == 0:
            self.guard.stop()

    def rounds(self, number: int) -> None:
        for _ in range(number):
            self.ended += self.admission.slots_max  # tasks are short
            self.guard.round()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records]


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_concurrency_falls_above_the_soft_limit_and_comes_back_under_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.rounds(3)
    assert (scene.admission.open_slots, scene.trims, lines(caplog)) == (10, 0, [])
    scene.used = 80
    scene.rounds(3)
    assert scene.admission.open_slots == 1
    scene.used = 30
    scene.rounds(5)
    assert scene.admission.open_slots == 10
    assert lines(caplog) == ["memory_soft_limit_passed", "memory_soft_limit_kept_again"]
    assert scene.ticks == 11


def test_what_only_the_allocator_still_holds_costs_no_slots() -> None:
    scene = Scene()
    scene.used, scene.freed_by_trim = 80, 40
    scene.rounds(1)
    assert (scene.admission.open_slots, scene.trims) == (10, 1)


def test_garbage_is_collected_only_where_tasks_have_ended_since() -> None:
    scene = Scene()
    scene.rounds(2)
    assert scene.collections == 0
    scene.used = 80
    for ended in (5, 5, 6, 6):
        scene.ended = ended
        scene.guard.round()
    assert scene.collections == 2
    scene.used = 60
    scene.ended = 7
    scene.guard.round()
    assert (scene.collections, scene.trims) == (2, 5), "below the mark the loop is not held up for it"


def test_where_a_free_slot_frees_nothing_the_limit_is_only_told(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(lowers=False)
    scene.used = 99
    scene.rounds(2)
    assert (scene.admission.open_slots, scene.trims, scene.ticks) == (10, 0, 2)
    scene.used = 10
    scene.rounds(1)
    assert lines(caplog) == ["memory_soft_limit_passed", "memory_soft_limit_kept_again"]


def test_a_budget_that_is_reached_over_and_over_is_told_once_and_its_end_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    for _ in range(30):
        scene.admission.room(free=5, held=5, payload_bytes=100)
        scene.rounds(2)  # between two takes there is a round without
    scene.rounds(3 * CALM_ROUNDS)
    assert lines(caplog) == ["inflight_bytes_reached", "inflight_bytes_below"]


def test_an_error_in_a_look_neither_ends_the_guard_nor_what_follows_its_tick(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_guard, "ROUND_S", 0.0)
    scene = Scene()
    scene.error, scene.looks_left = PermissionError("/proc/1/secret"), 5
    scene.guard.run()
    assert scene.ticks == 5
    assert lines(caplog) == ["memory_guard_failed"]
    assert "error=PermissionError" in caplog.text
    assert "secret" not in caplog.text
    scene.error = ZeroDivisionError()
    scene.rounds(2)
    assert lines(caplog) == ["memory_guard_failed"] * 2
    scene.error, scene.used = None, 80
    scene.rounds(1)
    assert scene.admission.open_slots == 1


def test_an_error_in_the_tick_does_not_end_the_guard(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene()
    monkeypatch.setattr(scene.guard, "_ticked", Mock(side_effect=RuntimeError))
    scene.used = 80
    scene.rounds(3)
    assert scene.admission.open_slots == 1
    assert lines(caplog) == ["memory_soft_limit_passed", "memory_guard_failed"]


def test_who_watches_the_guard_hears_of_each_round() -> None:
    scene = Scene()
    turns: list[int] = []
    scene.guard.turned = lambda: turns.append(1)
    scene.rounds(3)
    assert len(turns) == 3
