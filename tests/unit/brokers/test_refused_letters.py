"""What the broker refuses: a dead letter goes back to its queue, and holds up nothing that is behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.deliveries import Death, Delivery, Settlement
from forwarder.brokers.leases import PUT_OFF_PAUSE_S, LeaseBook
from forwarder.scaling.admission import Admission

DEATH = Death(
    code="invalid_message", error="no JSON", queue="q", deliveries=1, at="2026-01-01T00:00:00+00:00"
)


class Refused(Exception):
    """The broker's answer."""


class Broker:
    """Leases that refuse or are silent, as they are told to."""

    def __init__(self) -> None:
        self.fails: dict[str, Exception] = {"put_aside": Refused("full")}
        self.again = False
        self.settled: list[tuple[str, str]] = []
        self.asked = 0

    def receive(self, message: Any) -> Delivery:
        return Delivery(
            tag=message.tag,
            queue="q",
            number=1,
            confirmed_s=0.0,
            message=message,
            redelivered=self.again,
        )

    def refusal(self, error: Exception) -> str | None:
        return str(error) if isinstance(error, Refused) else None

    def ack(self, delivery: Delivery) -> bool:
        return self._settle("ack", delivery)

    def requeue(self, delivery: Delivery) -> bool:
        return self._settle("requeue", delivery)

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        return self._settle("put_aside", delivery)

    def put_off(self, delivery: Delivery) -> bool:
        return self._settle("put_off", delivery)

    def hand_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        return [delivery for delivery in deliveries if not self._settle("hand_back", delivery)]

    def _settle(self, how: str, delivery: Delivery) -> bool:
        self.asked += 1
        if how in self.fails:
            raise self.fails[how]
        self.settled.append((how, delivery.tag))
        return True


class Scene:
    """A book whose pauses are noted, and whose background waits for the test."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.slept: list[float] = []
        self.background: list[Callable[[], None]] = []
        self.book = LeaseBook(
            lambda: self.broker,  # type: ignore[arg-type, return-value]
            sleep=self.slept.append,
            uniform=lambda least, most: most,
            in_background=self.background.append,
        )
        self.concluded: list[str] = []
        self.book.concluded = lambda delivery, outcome: self.concluded.append(outcome)
        self.put_aside: list[Delivery] = []
        self.book.put_aside = self.put_aside.append
        self.tags = 0

    def take(self, body: bytes = b"") -> Delivery:
        self.tags += 1
        return self.book.open(SimpleNamespace(tag=str(self.tags), headers={}, body=body))

    def bury(self, delivery: Delivery) -> bool:
        return self.book.settle(delivery, Settlement.PUT_ASIDE, DEATH)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_is_refused_the_first_time_goes_back_at_once_and_is_told_as_requeued(scene: Scene) -> None:
    assert not scene.bury(scene.take())
    assert scene.broker.settled == [("put_off", "1")]
    assert scene.book.leased() == []
    assert (scene.concluded, scene.put_aside, sum(scene.slept)) == (["requeued"], [], 0)


def test_what_comes_again_fills_its_slot_for_about_a_second_before_it_goes_back(scene: Scene) -> None:
    scene.book.admission = Admission(slots_max=1, bytes_max=10)
    scene.broker.again = True
    delivery = scene.take(b"12345")
    scene.bury(delivery)
    assert (scene.book.held(), scene.book.room(1), scene.book.bytes_left()) == ([delivery], 0, 5)
    assert scene.broker.settled == []
    scene.background.pop()()
    assert scene.slept == [PUT_OFF_PAUSE_S[1]]
    assert scene.broker.settled == [("put_off", "1")]
    assert (scene.book.held(), scene.book.room(1), scene.book.bytes_left()) == ([], 1, 10)


def test_without_a_thread_to_wait_in_it_goes_back_at_once(scene: Scene) -> None:
    def no_thread(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    scene.book._in_background = no_thread
    scene.broker.again = True
    scene.bury(scene.take())
    assert scene.broker.settled == [("put_off", "1")]


def test_what_a_stop_hands_back_meanwhile_is_not_put_off_as_well(scene: Scene) -> None:
    scene.broker.again = True
    scene.bury(scene.take())
    scene.book.hand_back(scene.book.held())
    scene.background.pop()()
    assert scene.broker.settled == [("hand_back", "1")]


def test_a_refusal_is_logged_once_for_each_cause_and_once_when_it_is_over(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for cause in ("full", "full", "denied"):
        scene.broker.fails["put_aside"] = Refused(cause)
        scene.bury(scene.take())
    assert "q" in scene.book.refused_letters
    scene.broker.fails.clear()
    assert scene.bury(scene.take())
    assert scene.bury(scene.take())
    assert "q" not in scene.book.refused_letters
    assert [record.getMessage() for record in caplog.records] == [
        "dead_letters_refused queue=q error=full",
        "dead_letters_refused queue=q error=denied",
        "dead_letters_taken_again queue=q",
    ]
    assert len(scene.put_aside) == 2


def test_what_can_not_even_go_back_is_owed_until_it_can(scene: Scene) -> None:
    """As on a Redis server without memory, which refuses whatever adds something."""
    scene.broker.fails["put_off"] = Refused("no memory")
    delivery = scene.take(b"12345")
    scene.bury(delivery)
    assert (scene.book.leased(), scene.book.glance()) == ([delivery], ([], 5))
    scene.broker.fails.clear()
    scene.book.settle_owed()
    assert (scene.book.leased(), scene.book.glance()) == ([], ([], 0))
    assert scene.broker.settled == [("put_off", "1")]


def test_a_debt_that_turns_out_to_be_refused_goes_back_too(scene: Scene) -> None:
    scene.broker.fails["put_aside"] = ConnectionError()
    scene.bury(scene.take())
    assert len(scene.book.leased()) == 1
    scene.broker.fails["put_aside"] = Refused("full")
    scene.book.settle_owed()
    assert scene.broker.settled == [("put_off", "1")]
    assert scene.book.leased() == []


def test_debts_that_are_refused_hold_up_no_others_and_say_so_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.broker.fails["requeue"] = Refused("denied")
    for _ in range(200):
        scene.book.settle(scene.take(), Settlement.REQUEUE)
    scene.broker.fails["ack"] = ConnectionError()
    for _ in range(3):
        scene.book.settle(scene.take(), Settlement.ACK)
    del scene.broker.fails["ack"]
    caplog.clear()
    scene.book.settle_owed()
    assert [how for how, _ in scene.broker.settled] == ["ack"] * 3
    assert len(scene.book.leased()) == 200
    assert caplog.records == []


def test_a_broker_that_is_away_is_asked_for_one_debt_a_round(scene: Scene) -> None:
    """Each call may wait for a timeout."""
    scene.broker.fails["ack"] = ConnectionError()
    for _ in range(3):
        scene.book.settle(scene.take(), Settlement.ACK)
    scene.broker.asked = 0
    scene.book.settle_owed()
    assert scene.broker.asked == 1
    assert len(scene.book.leased()) == 3
