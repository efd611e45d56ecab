"""Pardons are noted one after the other, in the background, as long as there is hope."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.background import ForkGate
from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.pardons import RETRY_S, TRIES_MAX, Pardons


class Scene:
    """A store that is ``away`` for so many calls; ``work`` is what was sent to the background."""

    def __init__(self) -> None:
        self.away = 0
        self.noted: list[str] = []
        self.sleeps: list[float] = []
        self.work: list[Callable[[], None]] = []
        self.has_threads = True
        self.pardons = Pardons(
            note=self.note, gate=ForkGate(), in_background=self.in_background, sleep=self.sleeps.append
        )

    def note(self, task_id: str) -> None:
        if self.away:
            self.away -= 1
            raise ConnectionError("hunter2")
        self.noted.append(task_id)

    def in_background(self, work: Callable[[], None]) -> None:
        if not self.has_threads:
            raise RuntimeError("can't start new thread")
        self.work.append(work)

    def add(self, task_id: str | None) -> None:
        message: Any = SimpleNamespace(headers={"id": task_id})
        self.pardons.add(Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_is_lost_together_is_noted_by_one_thread(scene: Scene) -> None:
    for task_id in ("a", "b", "a"):
        scene.add(task_id)
    assert scene.noted == []
    (work,) = scene.work
    work()
    assert scene.noted == ["a", "b", "a"]
    scene.add("c")
    scene.work[1]()
    assert scene.noted[3:] == ["c"]


def test_a_message_without_an_id_has_nothing_to_be_noted_under(scene: Scene) -> None:
    scene.add(None)
    assert scene.work == []


def test_a_store_that_comes_back_has_them_all(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.add("a")
    scene.add("b")
    scene.away = TRIES_MAX - 1
    scene.work[0]()
    assert scene.noted == ["a", "b"]
    assert scene.sleeps == [RETRY_S] * (TRIES_MAX - 1)
    assert caplog.text.count("pardon_failing task_id=a error=ConnectionError") == 1
    assert "hunter2" not in caplog.text


def test_a_store_that_stays_away_is_given_up_and_asked_again_for_the_next(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.add("a")
    scene.add("b")
    scene.away = TRIES_MAX
    scene.work[0]()
    assert scene.noted == []
    assert "pardons_dropped number=2" in caplog.text
    scene.add("c")
    scene.work[1]()
    assert scene.noted == ["c"]


def test_what_is_not_noted_when_the_process_leaves_is_said(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.pardons.leave()
    assert caplog.text == ""
    scene.add("a")
    scene.add("b")
    scene.away = 1
    scene.pardons._sleep = lambda _: scene.pardons.leave()  # both: also the one that is being noted
    scene.work[0]()
    assert caplog.text.count("pardons_dropped number=2") == 1
    scene.pardons.leave()
    assert caplog.text.count("pardons_dropped") == 1


def test_where_no_thread_is_to_be_had_the_next_one_notes_it_too(scene: Scene) -> None:
    scene.has_threads = False
    scene.add("a")
    scene.has_threads = True
    scene.add("b")
    scene.work[0]()
    assert scene.noted == ["a", "b"]
