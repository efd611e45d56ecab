"""How many messages the consumer lets a broker push."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from forwarder.scaling.admission import Admission
from tests.unit.brokers.consumer_scene import Scene


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


class PushedTo:
    """Stands for kombu's consumer: notes its prefetch counts."""

    def __init__(self) -> None:
        self.queues = [SimpleNamespace(name="q")]
        self.tag_prefix = ""
        self.calls: list[Any] = []

    def qos(self, *, prefetch_count: int) -> None:
        self.calls.append(prefetch_count)

    def cancel(self) -> None:
        self.calls.append("cancel")

    def consume(self) -> None:
        self.calls.append("consume")


def pushed(scene: Scene) -> PushedTo:
    """Make the scene's broker one that pushes; what is to run in the loop runs at once."""
    consumer: Any = scene.consumer
    consumer.pushed = True
    consumer.qos = SimpleNamespace(value=8)
    consumer.task_consumer = PushedTo()
    consumer.call_soon = lambda work: work()
    scene.book.admission = Admission(slots_max=8, bytes_max=400)
    return consumer.task_consumer  # type: ignore[no-any-return]


def test_a_broker_that_pushes_is_told_less_when_messages_pass_the_budget(scene: Scene) -> None:
    kombu = pushed(scene)
    handle = scene.consumer.create_task_handler()

    def receive(size: int) -> None:
        headers = {"id": "a", "task": "t"}
        info = {"consumer_tag": f"{kombu.tag_prefix}1"}
        handle(SimpleNamespace(body=b"x" * size, properties={}, headers=headers, delivery_info=info))

    for size in (100, 100, 100, 100):
        receive(size)
    assert kombu.calls == [4]
    receive(1)
    assert kombu.calls == [4, "cancel"]
    scene.book.hand_back(scene.book.held())
    scene.book.ticked()
    assert kombu.calls == [4, "cancel", 4, "consume"]


def test_a_worker_that_stops_asks_for_nothing_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    kombu = pushed(scene)
    scene.receive()
    monkeypatch.setattr(state, "should_stop", 0)
    scene.book.admission.slots = 1  # type: ignore[attr-defined]
    scene.book.ticked()
    assert kombu.calls == [4]


def test_a_worker_that_closes_for_its_stop_cancels_every_consumer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    kombu = pushed(scene)
    scene.receive()
    monkeypatch.setattr(state, "should_stop", 0)
    scene.consumer.on_close()
    assert kombu.calls == [4, "cancel"]


def test_brokers_that_are_asked_for_messages_keep_celerys_prefetch_count(scene: Scene) -> None:
    kombu = pushed(scene)
    scene.consumer.pushed = False
    scene.receive(b"x" * 100)
    assert kombu.calls == []
