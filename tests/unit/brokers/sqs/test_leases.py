"""Leases on SQS: what is asked of the queue, and what a lease that ended keeps from being asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from forwarder.brokers.deliveries import Death, Delivery, Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.leases import SettlementRefused, SqsLeases
from tests.unit.brokers.sqs.fake import (
    VISIBILITY_S,
    Clock,
    FakeSqs,
    make_leases,
    message,
    raw_message,
    refusal,
)

AWAY = EndpointConnectionError(endpoint_url="https://sqs")
DEATH = Death(
    code="dead_lettered", error="too often", queue="q", deliveries=6, at="2026-01-01T00:00:00+00:00"
)


@pytest.fixture
def sqs() -> FakeSqs:
    return FakeSqs()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(sqs: FakeSqs, clock: Clock) -> SqsLeases:
    return make_leases(sqs, clock)


def take(leases: SqsLeases, sqs: FakeSqs, *raws: dict[str, Any]) -> list[Delivery]:
    """Fetch and open messages as the receiver and the consumer do."""
    taken: list[Delivery] = []
    for start in range(0, len(raws), 10):
        sqs.inbox = list(raws[start : start + 10])
        taken += [leases.receive(message(dict(raw))) for raw in leases.fetch(10, lambda: True)]
    return taken


def many(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [raw_message(f"h{n}", **changes) for n in range(number)]


def text(value: Any) -> dict[str, str]:
    return {"DataType": "String", "StringValue": json.dumps(value)}


def earlier(number: Any) -> dict[str, Any]:
    return {"x-forwarder-deliveries": text(number)}


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


def test_handing_back_sends_a_copy_that_keeps_the_count_and_then_deletes(
    leases: SqsLeases, sqs: FakeSqs
) -> None:
    trace = {"DataType": "String", "StringValue": "t", "StringListValues": []}
    [delivery] = take(leases, sqs, raw_message(count=2, body="b", _datadog=trace, **earlier(3)))
    assert delivery.number == 5
    leases.hand_back([delivery])
    leases.close()
    [copy] = sqs.queues["q"]
    assert copy["MessageBody"] == "b"
    assert copy["MessageAttributes"] == {"_datadog": {"DataType": "String", "StringValue": "t"}, **earlier(4)}
    [again] = take(make_leases(sqs, Clock()), sqs, raw_message(count=1, **copy["MessageAttributes"]))
    assert again.number == 5
    assert [entry["ReceiptHandle"] for entry in sqs.named("delete_message_batch")[0]["Entries"]] == ["h"]


def test_on_a_fifo_queue_a_copy_keeps_its_group_and_is_no_duplicate(sqs: FakeSqs, clock: Clock) -> None:
    leases = make_leases(sqs, clock, queue_url="https://sqs/1/q.fifo")
    sqs.queues["q.fifo"] = []
    leases.hand_back(take(leases, sqs, *many(2, group="g")))
    leases.close()
    copies = sqs.queues["q.fifo"]
    assert {copy["MessageGroupId"] for copy in copies} == {"g"}
    assert len({copy["MessageDeduplicationId"] for copy in copies}) == 2


@pytest.mark.parametrize("failure", [refusal("InvalidParameterValue"), {"x": "InternalError"}])
def test_what_can_not_be_copied_is_made_visible_and_not_deleted(
    leases: SqsLeases, sqs: FakeSqs, failure: Any
) -> None:
    [delivery] = take(leases, sqs, raw_message(body="x"))
    sqs.fails["send_message_batch"] = failure
    leases.hand_back([delivery])
    leases.close()
    [call] = sqs.named("change_message_visibility_batch")
    assert call["Entries"][0]["VisibilityTimeout"] == 0
    assert sqs.named("delete_message_batch") == []


def test_a_task_that_is_handed_back_while_sqs_is_away_stays_owed_and_uncounted(
    leases: SqsLeases, sqs: FakeSqs
) -> None:
    book = LeaseBook(lambda: leases)
    sqs.inbox = [raw_message()]
    [raw] = leases.fetch(1, lambda: True)
    delivery = book.open(message(dict(raw)))
    sqs.fails["send_message_batch"] = AWAY
    book.settle(delivery, Settlement.HAND_BACK)
    assert book.leased() == [delivery]
    assert sqs.named("change_message_visibility_batch") == []
    sqs.fails.clear()
    book.settle_owed()
    leases.close()
    [copy] = sqs.queues["q"]
    assert copy["MessageAttributes"] == earlier(0)


def test_copies_travel_together_as_long_as_they_fit(leases: SqsLeases, sqs: FakeSqs) -> None:
    sizes = [10] * 11 + [200_000, 200_000, 300_000, 10]
    raws = [raw_message(f"h{n}", body="x" * size) for n, size in enumerate(sizes)]
    leases.hand_back(take(leases, sqs, *raws))
    leases.close()
    assert [len(call["Entries"]) for call in sqs.named("send_message_batch")] == [10, 2, 1, 1, 1]


def test_a_dead_letter_goes_where_the_redrive_policy_says(leases: SqsLeases, sqs: FakeSqs) -> None:
    sqs.queues["graves"] = []
    sqs.redrive = '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:42:graves", "maxReceiveCount": 9}'
    for delivery in take(leases, sqs, *many(2, body="b")):
        assert leases.put_aside(delivery, DEATH) is True
    leases.close()
    first, _ = sqs.queues["graves"]
    assert first["MessageBody"] == "b"
    assert json.loads(first["MessageAttributes"]["x-forwarder-death"]["StringValue"])["deliveries"] == 6
    assert sqs.named("get_queue_url") == [{"QueueName": "graves", "QueueOwnerAWSAccountId": "42"}]
    assert sqs.named("create_queue") == []
    assert len(sqs.named("delete_message_batch")[0]["Entries"]) == 2


@pytest.mark.parametrize(("name", "dead"), [("q", "q-dead"), ("q.fifo", "q-dead.fifo")])
def test_without_a_redrive_policy_the_dead_letters_get_a_queue_of_their_own(
    sqs: FakeSqs, clock: Clock, name: str, dead: str
) -> None:
    leases = make_leases(sqs, clock, queue_url=f"https://sqs/1/{name}")
    for delivery in take(leases, sqs, *many(2, group="g")):
        leases.put_aside(delivery, DEATH)
    leases.close()
    assert len(sqs.queues[dead]) == 2
    [made] = sqs.named("create_queue")
    assert made["Attributes"].get("FifoQueue") == ("true" if name.endswith(".fifo") else None)


def test_a_dead_letter_that_can_be_put_nowhere_stays_owed(leases: SqsLeases, sqs: FakeSqs) -> None:
    book = LeaseBook(lambda: leases)
    sqs.inbox = [raw_message()]
    [raw] = leases.fetch(1, lambda: True)
    delivery = book.open(message(dict(raw)))
    sqs.fails["create_queue"] = refusal("AccessDenied")
    book.settle(delivery, Settlement.PUT_ASIDE, DEATH)
    assert book.leased() == [delivery]
    assert sqs.named("delete_message_batch") == []
    sqs.fails.clear()
    book.settle_owed()
    assert book.leased() == []
    leases.close()
    assert len(sqs.queues["q-dead"]) == 1


def test_a_message_without_room_for_the_reason_is_put_aside_without_it(
    leases: SqsLeases, sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sqs.send_message

    def full(**arguments: Any) -> None:
        if arguments["MessageAttributes"]:
            raise refusal("InvalidParameterValue")
        original(**arguments)

    monkeypatch.setattr(sqs, "send_message", full)
    [delivery] = take(leases, sqs, raw_message())
    assert leases.put_aside(delivery, DEATH) is True
    leases.close()
    assert len(sqs.queues["q-dead"]) == 1


def test_what_is_handed_back_after_its_lease_ended_is_told_and_not_copied(
    leases: SqsLeases, sqs: FakeSqs, clock: Clock
) -> None:
    [ended] = take(leases, sqs, raw_message("a"))
    clock.now_s += 1000
    [live] = take(leases, sqs, raw_message("b"))
    assert leases.hand_back([ended, live]) == [ended]
    assert len(hand_backs(sqs)) == 1


def hand_backs(sqs: FakeSqs) -> Sequence[str]:
    return [entry["MessageBody"] for call in sqs.named("send_message_batch") for entry in call["Entries"]]


def test_what_arrives_when_nobody_wants_it_is_handed_back(leases: SqsLeases, sqs: FakeSqs) -> None:
    sqs.inbox = [raw_message(body="late")]
    assert leases.fetch(10, lambda: False) == []
    assert hand_backs(sqs) == ["late"]
    assert leases.loose == 0


def test_closing_hands_back_what_was_fetched_and_never_opened(leases: SqsLeases, sqs: FakeSqs) -> None:
    sqs.inbox = [raw_message("a", body="opened"), raw_message("b", body="waiting")]
    opened, _ = leases.fetch(10, lambda: True)
    leases.receive(message(dict(opened)))
    assert leases.loose == 1
    leases.close()
    assert hand_backs(sqs) == ["waiting"]


@pytest.mark.parametrize(("passed_s", "waits_s"), [(0, 11.0), (4, 7.0), (50, 0.0)])
def test_closing_waits_for_the_last_poll_as_long_as_sqs_may_answer_and_no_longer(
    leases: SqsLeases,
    sqs: FakeSqs,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    passed_s: int,
    waits_s: float,
) -> None:
    asked, answered = threading.Event(), threading.Event()
    original, wait_for = sqs.receive_message, leases._idle.wait_for
    waits: list[float | None] = []

    def poll(**arguments: Any) -> Any:
        asked.set()
        answered.wait(5)
        return original(**arguments)

    def wait(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        waits.append(timeout)
        answered.set()
        return wait_for(predicate, 5)

    monkeypatch.setattr(sqs, "receive_message", poll)
    monkeypatch.setattr(leases._idle, "wait_for", wait)
    sqs.inbox = [raw_message(body="late")]
    poller = threading.Thread(target=leases.fetch, args=(10, lambda: True))
    poller.start()
    asked.wait(5)
    clock.now_s += passed_s
    leases.close()
    poller.join()
    assert waits == [waits_s]
    assert hand_backs(sqs) == (["late"] if waits_s else [])  # what came too late: its lease has ended
    assert len(sqs.named("delete_message_batch")) == len(hand_backs(sqs))


def test_a_message_that_was_handed_back_before_it_was_opened_has_no_lease(
    leases: SqsLeases, sqs: FakeSqs
) -> None:
    sqs.inbox = [raw_message()]
    [raw] = leases.fetch(10, lambda: True)
    leases.release()
    delivery = leases.receive(message(dict(raw)))
    assert leases.renew([delivery]) == [delivery]
    assert leases.ack(delivery) is False


def test_sqs_takes_over_by_itself_and_knows_no_connection(leases: SqsLeases, sqs: FakeSqs) -> None:
    deliveries = take(leases, sqs, raw_message())
    assert leases.take_over() == 0
    assert leases.disconnected(deliveries) == []
    assert leases.recount(message(raw_message())) is False
