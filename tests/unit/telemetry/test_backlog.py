"""What is told of the queues: what was seen at the last look, and nothing where that is old or failed."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest

from forwarder.brokers.deliveries import Waiting
from forwarder.telemetry.backlog import ROUNDS_MAX, Backlog, QueueBacklog
from forwarder.telemetry_parts import _backlog_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Scene:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.found: list[QueueBacklog] | Exception = []
        self.backlog = Backlog(
            look=self.look, round_s=15.0, unforked=nullcontext(), monotonic=lambda: self.now_s
        )

    def look(self) -> list[QueueBacklog]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def told(self) -> dict[tuple[str, str], float]:
        return {(each.name, each.labels["queue"]): each.value for each in self.backlog.readings()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_depth_and_age_are_told_of_each_queue_the_age_where_it_is_known(scene: Scene) -> None:
    scene.found = [QueueBacklog("a", 3, 1.5), QueueBacklog("b", 0, None)]
    assert scene.told() == {}
    scene.backlog.round()
    assert scene.told() == {
        ("forwarder_queue_depth", "a"): 3,
        ("forwarder_queue_oldest_seconds", "a"): 1.5,
        ("forwarder_queue_depth", "b"): 0,
    }


def test_nothing_is_told_while_the_broker_cannot_be_asked(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.found = [QueueBacklog("a", 3, None)]
    scene.backlog.round()
    scene.found = ConnectionError("redis://:hunter2@h")
    for _ in range(2):
        scene.backlog.round()
        assert scene.told() == {}
    assert caplog.messages == ["backlog_unreadable error=ConnectionError"]
    scene.found = [QueueBacklog("a", 4, None)]
    scene.backlog.round()
    assert scene.told() == {("forwarder_queue_depth", "a"): 4}


def test_what_was_seen_is_told_no_more_when_the_looks_hang(scene: Scene) -> None:
    scene.found = [QueueBacklog("a", 3, None)]
    scene.backlog.round()
    scene.now_s = 15.0 * ROUNDS_MAX
    assert scene.told()
    scene.now_s += 1
    assert not scene.told()


def test_how_old_the_look_is_that_saw_messages_wait_in_the_queues_that_are_asked_for(scene: Scene) -> None:
    assert scene.backlog.waiting_age_s({"a", "b"}) is None
    scene.found = [QueueBacklog("a", 3, None), QueueBacklog("b", 0, None)]
    scene.backlog.round()
    scene.now_s = 7.0
    assert scene.backlog.waiting_age_s({"a", "b"}) == 7.0
    assert scene.backlog.waiting_age_s({"b"}) is None


@pytest.mark.parametrize(
    ("waiting", "oldest_s"),
    [
        (Waiting("q", 5), None),
        (Waiting("q", 0), None),
        (Waiting("q", 0, ()), 0.0),
        (Waiting("q", 5, ()), None),
        (Waiting("q", 5, (None, "yesterday")), None),
        (Waiting("q", 5, (NOW - timedelta(seconds=3), (NOW - timedelta(seconds=9)).isoformat(), None)), 9.0),
    ],
)
def test_the_age_is_that_of_the_oldest_message_that_tells_its_arrival(
    waiting: Waiting, oldest_s: float | None
) -> None:
    assert _backlog_of(waiting, now=NOW) == QueueBacklog("q", waiting.number, oldest_s)
