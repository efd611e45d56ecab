"""Where SQS's dead letters go, and what they take with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from forwarder.brokers.dead_letters import read_letter
from forwarder.brokers.deliveries import Delivery, Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.leases import SettlementRefused, SqsLeases
from forwarder.brokers.sqs.messages import open_message
from tests.unit.brokers.sqs.fake import Clock, FakeSqs, make_leases, message, raw_message, refusal
from tests.unit.brokers.sqs.taken import DEATH, many, take


def held(leases: SqsLeases, sqs: FakeSqs) -> tuple[LeaseBook, Delivery]:
    book = LeaseBook(lambda: leases)
    sqs.inbox = [raw_message()]
    [raw] = leases.fetch(1, lambda: True)
    return book, book.open(message(dict(raw)))


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


def test_while_sqs_is_away_a_dead_letter_stays_owed(leases: SqsLeases, sqs: FakeSqs) -> None:
    book, delivery = held(leases, sqs)
    sqs.fails["get_queue_attributes"] = EndpointConnectionError(endpoint_url="https://sqs")
    book.settle(delivery, Settlement.PUT_ASIDE, DEATH)
    assert book.leased() == [delivery]
    assert sqs.named("delete_message_batch") == []
    sqs.fails.clear()
    book.settle_owed()
    assert book.leased() == []
    leases.close()
    assert len(sqs.queues["q-dead"]) == 1


def test_a_message_whose_dead_letters_may_not_be_made_goes_back_uncounted(
    leases: SqsLeases, sqs: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    book, delivery = held(leases, sqs)
    sqs.fails["create_queue"] = refusal("AccessDenied")
    assert not book.settle(delivery, Settlement.PUT_ASIDE, DEATH)
    assert book.leased() == []
    leases.close()
    [copy] = sqs.named("send_message_batch")[0]["Entries"]
    assert copy["MessageAttributes"]["x-forwarder-deliveries"]["StringValue"] == "0"
    assert len(sqs.named("delete_message_batch")) == 1
    assert "dead_letters_refused queue=q error=AccessDenied" in caplog.text


def test_an_answer_is_a_refusal_and_its_absence_is_none(leases: SqsLeases) -> None:
    assert leases.refusal(refusal("AccessDenied")) == "AccessDenied"
    assert leases.refusal(SettlementRefused("InternalError")) == "InternalError"
    assert leases.refusal(EndpointConnectionError(endpoint_url="https://sqs")) is None


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


@pytest.mark.parametrize(
    "body", ["garbage \xff", '{"headers": {"id": "t1"}, "body": "e30=", "properties": {}}', '{"a":' * 100_000]
)
def test_a_letter_is_told_by_the_id_and_size_that_the_dead_letters_show(
    leases: SqsLeases, sqs: FakeSqs, body: str
) -> None:
    [delivery] = take(leases, sqs, raw_message(body=body))
    leases.put_aside(delivery, DEATH)
    [dead] = sqs.queues["q-dead"]
    headers, shown = open_message({"Body": dead["MessageBody"], **dead})
    letter = read_letter(headers, shown, queue="q")
    assert leases.letter(delivery) == (letter.id, letter.body_bytes)
    assert letter.code == "dead_lettered"
