"""The consumer around the lease book: what is handled, what is handed back, what is cancelled."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import Reject

from forwarder.brokers.deliveries import Delivery
from tests.unit.brokers.consumer_scene import Scene


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_message_enters_the_book_before_it_is_handled(scene: Scene) -> None:
    message = scene.receive()
    assert scene.handled == [message]
    assert scene.book.held() == [message.delivery]


def test_a_message_that_was_published_again_to_be_counted_is_not_run(scene: Scene) -> None:
    scene.broker.recounted = True
    scene.receive()
    assert scene.handled == []
    assert len(scene.book) == 0


@pytest.mark.parametrize(
    ("number", "again", "expected"), [(1, False, False), (1, True, True), (2, False, True)]
)
def test_the_task_is_told_of_earlier_deliveries_also_of_those_that_dont_count(
    scene: Scene, number: int, again: bool, expected: bool
) -> None:
    scene.broker.again = again
    assert scene.receive(number=number).delivery_info["redelivered"] is expected


def test_what_celery_gave_up_while_the_store_was_away_comes_again_counted(scene: Scene) -> None:
    def give_up(message: Any) -> None:
        raise Reject

    scene.handle = give_up
    scene.receive()
    assert scene.broker.requeued == 1


def test_closing_hands_back_only_what_no_slot_has_begun(scene: Scene) -> None:
    running, waiting = scene.hold(begun=True), scene.hold(begun=False)
    scene.consumer.on_close()
    assert scene.broker.handed_back == [waiting]
    assert waiting.request.abandoned, "it must not start after its message went back"
    assert not running.request.abandoned
    assert scene.super_calls == ["on_close"]


def test_what_the_broker_gives_to_others_is_cancelled_before_reconnecting(scene: Scene) -> None:
    running = scene.hold(begun=True)
    scene.consumer.on_connection_error_after_connected(ConnectionResetError())
    assert running.request.abandoned
    assert len(scene.book) == 0
    assert scene.broker.handed_back == []
    assert scene.super_calls == ["on_connection_error_after_connected"]


def test_before_the_connection_closes_all_that_is_held_is_handed_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting = scene.hold(begun=True), scene.hold(begun=False)
    abandoned: list[bool] = []

    def hand_back(deliveries: list[Delivery]) -> list[Delivery]:
        abandoned.extend(delivery.request.abandoned for delivery in deliveries)
        assert scene.super_calls == [], "with the connection RabbitMQ's leases end"
        scene.broker.handed_back += deliveries
        return []

    monkeypatch.setattr(scene.broker, "hand_back", hand_back)
    scene.consumer.shutdown()
    assert scene.broker.handed_back == [running, waiting]
    assert abandoned == [True, True], "no copy may run on after its message went back"
    assert scene.super_calls == ["shutdown"]
    assert len(scene.book) == 0
