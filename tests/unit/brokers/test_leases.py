"""The lease book: every message that is held ends exactly once, and never by being forgotten."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.utils.json import dumps

from forwarder.brokers.deliveries import Death, Delivery, Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.scaling.admission import Admission

DEATH = Death(
    code="dead_lettered", error="too often", queue="q", deliveries=6, at="2026-01-01T00:00:00+00:00"
)


class Broker:
    """Leases in memory: settles what it is told to, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.ours = True
        self.settled: list[tuple[str, str]] = []

    def receive(self, message: Any) -> Delivery:
        return Delivery(tag=message.tag, queue="q", number=1, confirmed_s=0.0, message=message)

    def _settle(self, how: str, delivery: Delivery) -> bool:
        if self.away:
            raise ConnectionError
        self.settled.append((how, delivery.tag))
        return self.ours

    def ack(self, delivery: Delivery) -> bool:
        return self._settle("ack", delivery)

    def requeue(self, delivery: Delivery) -> bool:
        return self._settle("requeue", delivery)

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        assert death is DEATH
        return self._settle("put_aside", delivery)

    def put_off(self, delivery: Delivery) -> bool:
        return self._settle("put_off", delivery)

    def refusal(self, error: Exception) -> str | None:
        return None

    def hand_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        return [delivery for delivery in deliveries if not self._settle("hand_back", delivery)]


def message(tag: str = "1", **headers: Any) -> Any:
    return SimpleNamespace(tag=tag, headers=headers or {"id": f"task-{tag}"})


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def book(broker: Broker) -> LeaseBook:
    return LeaseBook(lambda: broker)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("how", list(Settlement))
def test_a_delivery_is_settled_once_however_often_it_is_asked_for(
    book: LeaseBook, broker: Broker, how: Settlement
) -> None:
    delivery = book.open(message())
    book.settle(delivery, how, DEATH if how is Settlement.PUT_ASIDE else None)
    book.settle(delivery, Settlement.ACK)
    assert broker.settled == [(how.value, "1")]
    assert len(book) == 0


def test_what_is_put_aside_needs_a_reason(book: LeaseBook) -> None:
    with pytest.raises(ValueError, match="death"):
        book.settle(book.open(message()), Settlement.PUT_ASIDE)


def test_what_can_not_be_settled_is_owed_keeps_its_lease_and_frees_its_slot(
    book: LeaseBook, broker: Broker
) -> None:
    delivery = book.open(message())
    broker.away = True
    book.settle(delivery, Settlement.ACK)
    assert len(book) == 0
    assert book.leased() == [delivery]
    broker.away = False
    book.settle_owed()
    assert broker.settled == [("ack", "1")]
    assert book.leased() == []


def test_settling_what_is_owed_stops_at_the_first_failure_and_forgets_nothing(
    book: LeaseBook, broker: Broker
) -> None:
    deliveries = [book.open(message(str(number))) for number in range(3)]
    broker.away = True
    for delivery in deliveries:
        book.settle(delivery, Settlement.ACK)
    book.settle_owed()
    assert set(map(id, book.leased())) == set(map(id, deliveries))


def test_a_lost_delivery_is_settled_no_more(book: LeaseBook, broker: Broker) -> None:
    delivery = book.open(message())
    assert book.lose(delivery)
    assert not book.lose(delivery)
    book.settle(delivery, Settlement.ACK)
    assert broker.settled == []


def test_a_debt_whose_lease_is_lost_is_written_off(book: LeaseBook, broker: Broker) -> None:
    delivery = book.open(message())
    broker.away = True
    book.settle(delivery, Settlement.ACK)
    broker.away = False
    assert not book.lose(delivery), "its task was not running any more"
    book.settle_owed()
    assert broker.settled == []


def test_only_what_is_in_flight_is_handed_back(book: LeaseBook, broker: Broker) -> None:
    done, running = book.open(message("done")), book.open(message("running"))
    book.settle(done, Settlement.ACK)
    book.hand_back([done, running])
    assert broker.settled == [("ack", "done"), ("hand_back", "running")]
    assert len(book) == 0


def test_what_can_not_be_handed_back_is_owed_and_keeps_its_lease(book: LeaseBook, broker: Broker) -> None:
    delivery = book.open(message())
    broker.away = True
    book.hand_back([delivery])
    assert len(book) == 0
    assert book.leased() == [delivery]
    broker.away = False
    book.settle_owed()
    assert broker.settled == [("hand_back", "1")]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("blamed", [True, False])
def test_what_is_handed_back_after_its_lease_ended_is_pardoned_unless_its_task_is_why(
    book: LeaseBook, broker: Broker, caplog: pytest.LogCaptureFixture, alone: bool, blamed: bool
) -> None:
    """The book has struck it out by then, so nobody loses it."""
    pardoned: list[Delivery] = []
    book.pardon = pardoned.append
    delivery = book.open(message())
    broker.ours, delivery.blamed = False, blamed
    if alone:
        book.settle(delivery, Settlement.HAND_BACK)
    else:
        book.hand_back([delivery])
    assert pardoned == ([] if blamed else [delivery])
    assert "lease_lost task_id=task-1 at=hand_back" in caplog.text


def test_what_is_handed_back_under_its_lease_needs_no_pardon(book: LeaseBook) -> None:
    pardoned: list[Delivery] = []
    book.pardon = pardoned.append
    book.hand_back([book.open(message("1"))])
    book.settle(book.open(message("2")), Settlement.HAND_BACK)
    assert pardoned == []


def test_waiting_for_an_empty_book_ends_with_the_last_settlement(book: LeaseBook) -> None:
    delivery = book.open(message())
    assert not book.wait_empty(0.0)
    waiter = threading.Thread(target=book.wait_empty, args=(5.0,))
    waiter.start()
    book.settle(delivery, Settlement.ACK)
    waiter.join(5.0)
    assert not waiter.is_alive()


@pytest.mark.parametrize("headers", [{"id": 7}, {"id": ""}, {"task": "x"}])
def test_an_id_that_is_no_id_is_none(book: LeaseBook, headers: dict[str, Any]) -> None:
    assert book.open(message(**headers)).task_id is None


def test_the_book_shows_what_it_holds_and_no_message(book: LeaseBook) -> None:
    delivery = book.open(message("1", id="a", body="secret"))
    assert repr(book) == "<LeaseBook>"
    assert "secret" not in repr(delivery)


# --- what counts ----------------------------------------------------------------------------


@pytest.fixture
def pardoned(book: LeaseBook) -> list[Delivery]:
    pardoned: list[Delivery] = []
    book.pardon = pardoned.append
    return pardoned


def test_a_task_that_loses_its_lease_is_pardoned_once(book: LeaseBook, pardoned: list[Delivery]) -> None:
    delivery = book.open(message())
    assert book.lose(delivery)
    assert not book.lose(delivery)
    assert pardoned == [delivery]


def test_a_task_that_may_be_to_blame_for_the_end_of_its_lease_is_not(
    book: LeaseBook, pardoned: list[Delivery]
) -> None:
    delivery = book.open(message())
    delivery.blamed = True
    assert book.lose(delivery)
    assert pardoned == []


@pytest.mark.parametrize(
    ("how", "is_pardoned"),
    [
        (Settlement.HAND_BACK, True),
        (Settlement.PUT_OFF, True),
        (Settlement.REQUEUE, False),
        (Settlement.ACK, False),
    ],
)
def test_what_could_not_be_settled_under_its_lease_is_pardoned_where_it_was_not_to_count(
    how: Settlement, is_pardoned: bool, broker: Broker, book: LeaseBook, pardoned: list[Delivery]
) -> None:
    delivery = book.open(message())
    broker.away = True
    book.settle(delivery, how)
    assert not book.lose(delivery)
    assert pardoned == [delivery] * is_pardoned


def test_payload_bytes_count_from_the_opening_to_the_settlement(book: LeaseBook) -> None:
    book.admission = Admission(slots_max=4, bytes_max=10)
    first = book.open(SimpleNamespace(tag="1", headers={}, body=b"123456"))
    second = book.open(SimpleNamespace(tag="2", headers={}, body="1234"))
    assert (book.bytes_left(), book.room(4)) == (0, 0)
    book.settle(first, Settlement.ACK)
    book.settle(first, Settlement.ACK)
    assert (book.bytes_left(), book.room(4)) == (6, 3)
    book.lose(second)
    assert book.bytes_left() == 10


def test_the_bytes_of_what_is_owed_count_until_it_is_settled_or_lost(book: LeaseBook, broker: Broker) -> None:
    book.admission = Admission(slots_max=4, bytes_max=10)
    settled, lost = (book.open(SimpleNamespace(tag=tag, headers={}, body=b"12345")) for tag in "12")
    broker.away = True
    for delivery in (settled, lost):
        book.settle(delivery, Settlement.ACK)
    assert (len(book), book.bytes_left()) == (0, 0)
    book.lose(lost)
    assert book.bytes_left() == 5
    book.settle_owed()
    assert book.bytes_left() == 5
    broker.away = False
    book.settle_owed()
    assert book.bytes_left() == 10


def test_a_message_that_can_not_be_read_has_the_bytes_that_its_broker_tells(broker: Broker) -> None:
    given = Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message(body=""), payload_bytes=7)
    broker.receive = lambda message: given  # type: ignore[method-assign]
    book = LeaseBook(lambda: broker)  # type: ignore[arg-type, return-value]
    book.open(SimpleNamespace(body="", headers={}))
    assert book.glance() == ([given], 7)


def test_who_waits_for_room_is_woken_by_the_bytes_of_what_ends(book: LeaseBook) -> None:
    book.admission = Admission(slots_max=4, bytes_max=10)
    delivery = book.open(SimpleNamespace(tag="1", headers={}, body=b"x" * 10))
    assert not book.wait_room(4, 0.0)
    threading.Timer(0.01, book.settle, (delivery, Settlement.ACK)).start()
    assert book.wait_room(4, 10.0)


def test_every_end_of_a_delivery_is_counted_once(book: LeaseBook, broker: Broker) -> None:
    acked, lost, handed_back = (book.open(message(tag)) for tag in "123")
    book.settle(acked, Settlement.ACK)
    book.settle(acked, Settlement.ACK)
    book.lose(lost)
    book.hand_back([handed_back])
    assert book.ended == 3


def test_a_glance_shows_what_is_in_flight_while_somebody_holds_the_lock(book: LeaseBook) -> None:
    delivery = book.open(SimpleNamespace(tag="1", headers={"id": "a"}, body=b"12345"))
    seen: list[Any] = []
    with book._changed:
        looker = threading.Thread(target=lambda: seen.append(book.glance()))
        looker.start()
        looker.join(10)
    assert seen == [([delivery], 5)]


@pytest.mark.parametrize(
    ("request_", "begun", "early"),
    [
        (None, False, False),
        (SimpleNamespace(time_start=None, eta=None), False, False),
        (SimpleNamespace(time_start=None, eta="tomorrow"), False, True),
        (SimpleNamespace(time_start=1.0, eta="yesterday"), True, False),
    ],
)
def test_a_delivery_that_waits_for_its_moment_is_early(
    book: LeaseBook, request_: object, begun: bool, early: bool
) -> None:
    delivery = book.open(message())
    delivery.request = request_
    assert (delivery.begun, delivery.early) == (begun, early)


def test_the_book_can_stand_in_an_answer_of_remote_control() -> None:
    """It is among the connection's options, all of which ``inspect stats`` tells."""
    book = LeaseBook(lambda: None)  # type: ignore[arg-type,return-value]
    assert dumps({"book": book}) == '{"book": "<LeaseBook>"}'


def test_a_task_with_an_eta_fills_a_slot_from_when_that_has_it() -> None:
    delivery = Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message(), taken_s=5.0)
    assert delivery.slot_s == 5.0
    delivery.request = SimpleNamespace(eta=None, time_start=None)
    assert delivery.slot_s == 5.0
    delivery.request = SimpleNamespace(eta="2026-01-01T00:00:00", time_start=None)
    assert delivery.slot_s is None
    delivery.request.time_start = time.time() - 3
    assert delivery.slot_s == pytest.approx(time.monotonic() - 3, abs=1)
