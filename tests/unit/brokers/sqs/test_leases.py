"""Leases on SQS: what is asked of the queue, and what a lease that ended keeps from being asked."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from forwarder.brokers.sqs.leases import SettlementRefused, SqsLeases
from tests.unit.brokers.sqs.fake import VISIBILITY_S, Clock, FakeSqs, message, raw_message
from tests.unit.brokers.sqs.taken import AWAY, DEATH, earlier, many, take


@pytest.mark.parametrize(
    ("attributes", "number"),
    [({}, 3), (earlier(4), 7), (earlier(-4), 3), (earlier("4"), 3), (earlier(True), 3)],
)
def test_a_delivery_counts_those_of_sqs_and_those_before_the_copy(
    leases: SqsLeases, sqs: FakeSqs, attributes: dict[str, Any], number: int
) -> None:
    [delivery] = take(leases, sqs, raw_message(count=3, **attributes))
    assert (delivery.number, delivery.tag, delivery.queue) == (number, "h", "q")


def test_a_receive_names_the_visibility_timeout_and_asks_for_the_count(
    leases: SqsLeases, sqs: FakeSqs
) -> None:
    take(leases, sqs, raw_message())
    [asked] = sqs.named("receive_message")
    assert asked["VisibilityTimeout"] == VISIBILITY_S
    assert asked["MessageSystemAttributeNames"] == ["ApproximateReceiveCount", "MessageGroupId"]
    assert asked["WaitTimeSeconds"] == 10


def test_a_lease_begins_when_the_message_comes_and_not_when_the_poll_began(
    leases: SqsLeases, sqs: FakeSqs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sqs.receive_message

    def slow(seconds: float) -> None:
        def answer(**arguments: Any) -> Any:
            clock.now_s += seconds
            return original(**arguments)

        monkeypatch.setattr(sqs, "receive_message", answer)

    slow(9)
    [delivery] = take(leases, sqs, raw_message())
    assert delivery.confirmed_s == 1009
    slow(50)  # an answer that was held up on its way: taken when the poll ended at the latest
    [delivery] = take(leases, sqs, raw_message())
    assert delivery.confirmed_s == 1009 + 10


def test_acks_are_deleted_ten_at_a_time(leases: SqsLeases, sqs: FakeSqs) -> None:
    deliveries = take(leases, sqs, *many(25))
    assert all(leases.ack(delivery) for delivery in deliveries)
    leases.close()
    assert [len(call["Entries"]) for call in sqs.named("delete_message_batch")] == [10, 10, 5]


def test_an_ack_after_the_lease_ended_deletes_nothing(leases: SqsLeases, sqs: FakeSqs, clock: Clock) -> None:
    [delivery] = take(leases, sqs, raw_message())
    clock.now_s += VISIBILITY_S
    assert leases.ack(delivery) is False
    assert leases.requeue(delivery) is False
    assert leases.put_aside(delivery, DEATH) is False
    leases.hand_back([delivery])
    leases.close()
    assert [name for name, _ in sqs.calls] == ["receive_message"]


def test_a_delete_that_failed_is_tried_again_unless_its_handle_is_gone(
    leases: SqsLeases, sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone, done = take(leases, sqs, raw_message("kept"), raw_message("gone"), raw_message("done"))
    assert leases._delete([kept, gone, done]) == []
    sqs.fails["delete_message_batch"] = {"kept": "InternalError", "gone": "ReceiptHandleIsInvalid"}
    assert leases._delete([kept, gone, done]) == [kept]


def test_a_lease_is_renewed_when_a_third_of_it_is_over(leases: SqsLeases, sqs: FakeSqs, clock: Clock) -> None:
    deliveries = take(leases, sqs, *many(12))
    clock.now_s += VISIBILITY_S / 3 - 0.1
    assert leases.renew(deliveries) == []
    assert sqs.named("change_message_visibility_batch") == []
    clock.now_s += 0.1
    assert leases.renew(deliveries) == []
    calls = sqs.named("change_message_visibility_batch")
    assert [len(call["Entries"]) for call in calls] == [10, 2]
    assert {entry["VisibilityTimeout"] for entry in calls[0]["Entries"]} == {VISIBILITY_S}
    assert {delivery.confirmed_s for delivery in deliveries} == {clock.now_s}


@pytest.mark.parametrize(
    "code",
    ["ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight", "InvalidParameterValue"],
)
def test_a_lease_that_sqs_does_not_know_is_lost(
    leases: SqsLeases, sqs: FakeSqs, clock: Clock, code: str
) -> None:
    gone, kept = take(leases, sqs, raw_message("gone"), raw_message("kept"))
    sqs.fails["change_message_visibility_batch"] = {"gone": code, "kept": "InternalError"}
    clock.now_s += VISIBILITY_S / 2
    assert leases.renew([gone, kept]) == [gone]
    assert kept.confirmed_s == 1000


def test_while_sqs_is_away_a_lease_is_lost_when_it_ends_by_our_clock(
    leases: SqsLeases, sqs: FakeSqs, clock: Clock
) -> None:
    old, young = take(leases, sqs, raw_message("old"), raw_message("young"))
    young.confirmed_s += 5
    sqs.fails["change_message_visibility_batch"] = AWAY
    clock.now_s += VISIBILITY_S - 1
    with pytest.raises(EndpointConnectionError):
        leases.renew([old, young])
    clock.now_s += 1
    assert leases.renew([old, young]) == [old]


def test_requeue_makes_the_message_visible(leases: SqsLeases, sqs: FakeSqs) -> None:
    [delivery] = take(leases, sqs, raw_message())
    assert leases.requeue(delivery) is True
    [call] = sqs.named("change_message_visibility_batch")
    assert call["Entries"] == [{"Id": "0", "ReceiptHandle": "h", "VisibilityTimeout": 0}]


def test_a_requeue_that_sqs_refuses_stays_owed_unless_the_handle_is_gone(
    leases: SqsLeases, sqs: FakeSqs
) -> None:
    [delivery] = take(leases, sqs, raw_message())
    sqs.fails["change_message_visibility_batch"] = {"h": "MessageNotInflight"}
    assert leases.requeue(delivery) is False
    sqs.fails["change_message_visibility_batch"] = {"h": "InternalError"}
    with pytest.raises(SettlementRefused, match="InternalError"):
        leases.requeue(delivery)


def test_sqs_takes_over_by_itself_and_knows_no_connection(leases: SqsLeases, sqs: FakeSqs) -> None:
    deliveries = take(leases, sqs, raw_message())
    assert leases.take_over() == 0
    assert leases.disconnected(deliveries) == []
    assert leases.recount(message(raw_message())) is False
