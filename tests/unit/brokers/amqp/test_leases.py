"""Which deliveries count, which leases are still ours, and what becomes of a message: without a broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import AccessRefused, MessageNacked, NotFound, RecoverableConnectionError

from forwarder.brokers.amqp.leases import AmqpLeases
from forwarder.brokers.dead_letters import (
    DEATH_HEADER,
    DELIVERIES_HEADER,
    NoSuchQueue,
    read_letter,
    with_death,
)
from forwarder.brokers.deliveries import Death, Delivery, Waiting

DEATH = Death(
    code="dead_lettered", error="too often", queue="q", deliveries=6, at="2030-01-01T00:00:00+00:00"
)


@dataclass(eq=False)
class Channel:
    """Records what is sent over it."""

    is_open: bool = True
    life: int = 1
    callbacks: dict[str, Any] = field(default_factory=lambda: {"consumer": None})
    sent: list[tuple[str, Any]] = field(default_factory=list)

    def basic_ack(self, tag: int) -> None:
        self.sent.append(("ack", tag))

    def basic_reject(self, tag: int, *, requeue: bool) -> None:
        self.sent.append(("requeue" if requeue else "drop", tag))

    def basic_cancel(self, consumer_tag: str, *, nowait: bool) -> None:
        assert nowait, "the answer is for the consumer's thread"
        self.sent.append(("cancel", consumer_tag))


@dataclass
class FakeCopies:
    """Records copies, or fails to take them."""

    fails: bool = False
    answer: Exception | None = None
    made: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    closed: bool = False

    def publish(self, queue: str, raw: Any, *, headers: dict[str, Any], **options: Any) -> None:
        if self.fails:
            raise TimeoutError("hunter2")
        if self.answer is not None:
            raise self.answer
        self.made.append((queue, headers, options))

    def waiting(self, queue: str) -> int:
        if queue == "new":
            raise NotFound(queue)
        if self.fails:
            raise TimeoutError("hunter2")
        return 7

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def copies() -> FakeCopies:
    return FakeCopies()


@pytest.fixture
def leases(copies: FakeCopies) -> AmqpLeases:
    return AmqpLeases(copies=copies, monotonic=lambda: 42.0)  # type: ignore[arg-type]


@pytest.fixture
def channel() -> Channel:
    return Channel()


def message(
    channel: Channel, *, task_id: Any = "t1", redelivered: bool = False, tag: int = 1, **headers: Any
) -> Any:
    return SimpleNamespace(
        channel=channel,
        delivery_tag=tag,
        headers={"id": task_id, **{name.replace("_", "-"): value for name, value in headers.items()}},
        delivery_info={"queue": "q", "routing_key": "elsewhere", "redelivered": redelivered},
        raw=object(),
    )


def take(leases: AmqpLeases, received: Any) -> Delivery:
    assert not leases.recount(received)
    return leases.receive(received)


def test_the_backlog_has_each_queue_there_is(copies: FakeCopies) -> None:
    leases = AmqpLeases(copies=copies, queues=("new", "q"))  # type: ignore[arg-type]
    assert leases.backlog() == [Waiting("q", 7)]
    copies.fails = True
    with pytest.raises(TimeoutError):
        leases.backlog()


def test_a_first_delivery_is_number_one(leases: AmqpLeases, channel: Channel, copies: FakeCopies) -> None:
    received = message(channel)
    delivery = take(leases, received)
    assert (delivery.number, delivery.queue, delivery.confirmed_s) == (1, "q", 42.0)
    assert received.delivery_info["redelivered"] is False
    assert not copies.made


def test_a_message_that_was_delivered_before_is_copied_with_a_higher_count_and_not_run(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies
) -> None:
    assert leases.recount(message(channel, redelivered=True, x_forwarder_deliveries=2))
    assert copies.made == [("q", {"id": "t1", DELIVERIES_HEADER: 3}, {})]
    assert channel.sent == [("ack", 1)]


def test_a_copy_is_run_with_its_count_and_told_that_it_is_one(leases: AmqpLeases, channel: Channel) -> None:
    received = message(channel, x_forwarder_deliveries=3)
    delivery = take(leases, received)
    assert delivery.number == 4
    assert delivery.redelivered


def test_the_original_is_kept_and_run_when_no_copy_is_taken(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies, caplog: pytest.LogCaptureFixture
) -> None:
    copies.fails = True
    assert take(leases, message(channel, redelivered=True, x_forwarder_deliveries=2)).number == 4
    assert not channel.sent
    assert "recount_failed" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_task_whose_connection_was_lost_is_not_to_blame(leases: AmqpLeases, channel: Channel) -> None:
    held = [take(leases, message(channel))]
    channel.is_open = False
    assert leases.disconnected(held) == leases.renew(held) == held
    assert not held[0].blamed


@pytest.mark.parametrize("told_by", ["renew", "disconnected"])
def test_a_task_whose_channel_the_broker_closed_may_be_to_blame(
    told_by: str, leases: AmqpLeases, channel: Channel
) -> None:
    """It may outlast the broker's limit, and would do so each time."""
    held = [take(leases, message(channel))]
    channel.life += 1
    assert getattr(leases, told_by)(held) == held
    assert held[0].blamed


@pytest.mark.parametrize("task_id", [None, 7, {"a": 1}, ["x"]])
def test_a_message_without_a_usable_id_is_counted_too(
    leases: AmqpLeases, channel: Channel, task_id: Any
) -> None:
    leases.disconnected([take(leases, message(channel, task_id=task_id))])
    assert leases.recount(message(Channel(), task_id=task_id, redelivered=True))


def test_ack_and_requeue_go_over_the_channel_that_delivered(leases: AmqpLeases, channel: Channel) -> None:
    assert leases.ack(take(leases, message(channel, tag=4)))
    assert leases.requeue(take(leases, message(channel, tag=5)))
    assert channel.sent == [("ack", 4), ("requeue", 5)]


@pytest.mark.parametrize("end", [{"is_open": False}, {"life": 2}], ids=["closed", "opened again"])
def test_nothing_is_settled_over_a_channel_that_ended(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies, end: dict[str, Any]
) -> None:
    delivery = take(leases, message(channel))
    vars(channel).update(end)
    assert not leases.ack(delivery)
    assert not leases.requeue(delivery)
    assert not leases.put_aside(delivery, DEATH)
    leases.hand_back([delivery])
    assert leases.renew([delivery]) == [delivery]
    assert not channel.sent
    assert not copies.made


def test_what_is_handed_back_is_copied_with_the_count_it_came_with_and_then_acked(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies
) -> None:
    delivery = take(leases, message(channel, x_forwarder_deliveries=2))
    delivery.message.headers["forwarder_dead"] = 9  # Celery's request writes into the message's own
    leases.hand_back([delivery])
    assert copies.made == [("q", {"id": "t1", DELIVERIES_HEADER: 2}, {})]
    assert channel.sent == [("ack", 1)]


def test_a_worker_that_stops_takes_no_more_before_it_hands_back(copies: FakeCopies, channel: Channel) -> None:
    leases = AmqpLeases(copies=copies, stopping=lambda: True)  # type: ignore[arg-type]
    leases.hand_back([take(leases, message(channel, tag=1)), take(leases, message(channel, tag=2))])
    assert channel.sent == [("cancel", "consumer"), ("ack", 1), ("ack", 2)]


def test_an_original_is_never_acked_without_its_copy(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies
) -> None:
    delivery = take(leases, message(channel))
    copies.fails = True
    with pytest.raises(TimeoutError):
        leases.hand_back([delivery])
    with pytest.raises(TimeoutError):
        leases.put_aside(delivery, DEATH)
    assert not channel.sent


def test_what_is_put_off_goes_to_the_end_of_its_queue_and_does_not_count(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies
) -> None:
    assert leases.put_off(take(leases, message(channel, x_forwarder_deliveries=2)))
    assert copies.made == [("q", {"id": "t1", DELIVERIES_HEADER: 2}, {})]
    assert channel.sent == [("ack", 1)]


def test_what_a_full_queue_takes_no_copy_of_goes_back_to_its_place(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = take(leases, message(channel))
    copies.answer = MessageNacked()
    assert leases.hand_back([delivery]) == []
    assert leases.hand_back([delivery]) == []
    assert channel.sent == [("requeue", 1)]
    assert "hand_back_counts queue=q error=MessageNacked" in caplog.text


def test_an_answer_is_a_refusal_and_its_absence_is_none(leases: AmqpLeases) -> None:
    for error in (MessageNacked(), AccessRefused(), NoSuchQueue("q.dead")):
        assert leases.refusal(error) == type(error).__name__
    for absence in (TimeoutError(), RecoverableConnectionError(), OSError()):
        assert leases.refusal(absence) is None


def test_a_dead_letter_has_its_reason_and_no_end_of_its_own(
    leases: AmqpLeases, channel: Channel, copies: FakeCopies
) -> None:
    assert leases.put_aside(take(leases, message(channel)), DEATH)
    ((queue, headers, options),) = copies.made
    assert queue == "q.dead"
    assert headers[DEATH_HEADER]["code"] == "dead_lettered"
    assert options == {"without": ("expiration",), "create": True}
    assert channel.sent == [("ack", 1)]


def test_a_renewed_lease_is_confirmed_now(copies: FakeCopies, channel: Channel) -> None:
    times = iter([1.0, 9.0])
    leases = AmqpLeases(copies=copies, monotonic=lambda: next(times))  # type: ignore[arg-type]
    delivery = take(leases, message(channel))
    assert leases.renew([delivery]) == []
    assert delivery.confirmed_s == 9.0
    assert leases.take_over() == 0


def test_closing_closes_the_connection_for_copies(leases: AmqpLeases, copies: FakeCopies) -> None:
    leases.close()
    assert copies.closed


def test_what_is_handed_back_over_a_channel_that_is_gone_is_told_and_blamed_on_who_is_why(
    leases: AmqpLeases, channel: Channel
) -> None:
    delivery = take(leases, message(channel))
    channel.life += 1
    assert leases.hand_back([delivery]) == [delivery]
    assert delivery.blamed
    cut_off = take(leases, message(channel))
    channel.is_open = False
    assert leases.hand_back([cut_off]) == [cut_off]
    assert not cut_off.blamed


def test_what_a_stop_has_handed_back_is_no_trouble_to_whoever_comes_later(
    copies: FakeCopies, channel: Channel
) -> None:
    leases = AmqpLeases(copies=copies, stopping=lambda: True)  # type: ignore[arg-type]
    delivery = take(leases, message(channel))
    assert leases.hand_back([delivery]) == []
    assert leases.disconnected([delivery]) == [delivery]
    assert not delivery.blamed
    assert leases.hand_back([delivery]) == []
    assert len(copies.made) == 1


@pytest.mark.parametrize("named", ["t1", None])
def test_a_letter_is_told_by_the_id_and_size_that_the_dead_letters_show(
    leases: AmqpLeases, channel: Channel, named: str | None
) -> None:
    received = message(channel, task_id=named)
    received.raw = SimpleNamespace(body=b"\x1f\x8b raw")  # not what kombu unpacked of it
    dead = read_letter(with_death(received.headers, DEATH), received.raw.body, queue="q")
    assert leases.letter(leases.receive(received)) == (dead.id, 6)
    assert dead.id.startswith("t1" if named else "body-")
