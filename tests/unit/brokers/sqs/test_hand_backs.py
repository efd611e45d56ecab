"""What is handed back to SQS: as a copy that keeps the count, and also when the worker closes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from forwarder.brokers.deliveries import Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.leases import SqsLeases
from tests.unit.brokers.sqs.fake import Clock, FakeSqs, make_leases, message, raw_message, refusal
from tests.unit.brokers.sqs.taken import AWAY, earlier, hand_backs, many, take


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


def test_what_is_handed_back_after_its_lease_ended_is_told_and_not_copied(
    leases: SqsLeases, sqs: FakeSqs, clock: Clock
) -> None:
    [ended] = take(leases, sqs, raw_message("a"))
    clock.now_s += 1000
    [live] = take(leases, sqs, raw_message("b"))
    assert leases.hand_back([ended, live]) == [ended]
    assert len(hand_backs(sqs)) == 1


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
