"""The dead letters of an SQS queue: whose they are, and that looking at them leaves them there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forwarder.brokers.dead_letters import NoSuchLetter
from forwarder.brokers.sqs.dead_letters import SqsDeadLetters
from tests.unit.brokers.sqs.fake import QUEUE_URL, FakeSqs, raw_message, refusal


class Graveyard(FakeSqs):
    """A dead letter queue with ``letters``: taking one hides it."""

    def __init__(self, *letters: dict[str, Any]) -> None:
        super().__init__("q", "q-dead")
        self.visible = list(letters)
        self.hidden: list[dict[str, Any]] = []

    def receive_message(self, **arguments: Any) -> dict[str, Any]:
        taken = self.visible[: arguments["MaxNumberOfMessages"]]
        self.visible = self.visible[len(taken) :]
        self.hidden += taken
        return {"Messages": taken} if taken else {}

    def change_message_visibility_batch(self, **arguments: Any) -> dict[str, Any]:
        handles = {entry["ReceiptHandle"] for entry in arguments["Entries"]}
        self.visible += [raw for raw in self.hidden if raw["ReceiptHandle"] in handles]
        self.hidden = [raw for raw in self.hidden if raw["ReceiptHandle"] not in handles]
        return {}

    def delete_message(self, **arguments: Any) -> None:
        self.hidden = [raw for raw in self.hidden if raw["ReceiptHandle"] != arguments["ReceiptHandle"]]


def letter(name: str, *, queue: str = "q", sent: int = 0, **system: str) -> dict[str, Any]:
    body = json.dumps({"body": name, "headers": {"id": name, "task": "t"}, "properties": {}})
    death = {"code": "expired", "error": "e", "queue": queue, "deliveries": 2, "at": "now"}
    attributes: dict[str, Any] = {
        "x-forwarder-death": {"DataType": "String", "StringValue": json.dumps(death)},
        "x-forwarder-deliveries": {"DataType": "String", "StringValue": "4"},
    }
    raw = raw_message(name, body=body, **attributes)
    raw["Attributes"] |= {"SentTimestamp": str(sent)} | system
    return raw


def letters_of(sqs: FakeSqs) -> SqsDeadLetters:
    return SqsDeadLetters(client=lambda: sqs, queue="q", queue_url=QUEUE_URL)


def nothing(_letter: Any) -> None:
    """Stand for what the command does before a letter goes."""


def test_a_list_is_the_oldest_first_and_leaves_every_letter_where_it_is() -> None:
    sqs = Graveyard(
        letter("new", sent=2), letter("old", sent=1), *[letter(str(n), sent=9) for n in range(20)]
    )
    found = letters_of(sqs).list(100)
    assert [each.id for each in found[:2]] == ["old", "new"]
    assert (len(found), found[0].code, found[0].deliveries) == (22, "expired", 2)
    assert (len(sqs.visible), sqs.hidden) == (22, [])
    assert len(letters_of(sqs).list(3)) == 3
    assert (len(sqs.visible), sqs.hidden) == (22, [])


def test_showing_one_gives_back_all_and_an_unknown_id_is_an_error() -> None:
    sqs = Graveyard(letter("a"), letter("b"))
    opened = letters_of(sqs).show("b")
    assert (opened.letter.id, opened.body) == ("b", "b")
    assert opened.headers["x-forwarder-death"]["code"] == "expired"
    with pytest.raises(NoSuchLetter):
        letters_of(sqs).show("c")
    assert (len(sqs.visible), sqs.hidden) == (2, [])


def test_requeued_letters_start_anew() -> None:
    sqs = Graveyard(letter("a"), letter("b"))
    before: list[str] = []
    went = letters_of(sqs).requeue(["a"], lambda each: before.append(each.id))
    assert before == [each.id for each in went] == ["a"]
    [sent] = sqs.queues["q"]
    assert sent["MessageAttributes"] == {}
    assert [raw["ReceiptHandle"] for raw in sqs.visible] == ["b"]


def test_a_letter_stays_when_what_comes_before_its_going_fails() -> None:
    sqs = Graveyard(letter("a"), letter("b"))

    def fail(_letter: Any) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        letters_of(sqs).requeue(None, fail)
    assert sqs.queues["q"] == []
    assert (len(sqs.visible), sqs.hidden) == (2, [])


def test_purged_letters_are_gone() -> None:
    sqs = Graveyard(letter("a"), letter("b"))
    assert [each.id for each in letters_of(sqs).purge(["a"])] == ["a"]
    assert [each.id for each in letters_of(sqs).purge(None)] == ["b"]
    assert (sqs.visible, sqs.hidden) == ([], [])


@pytest.mark.parametrize(
    "raw",
    [
        letter("other", queue="another"),
        letter("other", DeadLetterQueueSourceArn="arn:aws:sqs:us-east-1:1:another"),
    ],
)
def test_letters_of_other_queues_are_neither_shown_nor_touched(raw: dict[str, Any]) -> None:
    sqs = Graveyard(raw)
    letters = letters_of(sqs)
    assert letters.list(10) == letters.purge(None) == letters.requeue(None, nothing) == []
    assert sqs.visible == [raw]


def test_what_sqs_moved_by_itself_is_a_letter_of_unknown_reason() -> None:
    raw = letter("a", DeadLetterQueueSourceArn="arn:aws:sqs:us-east-1:1:q")
    raw["MessageAttributes"] = {}
    [found] = letters_of(Graveyard(raw)).list(10)
    assert (found.id, found.code, found.queue) == ("a", "unknown", "q")


def test_without_a_dead_letter_queue_there_are_no_letters_and_none_is_made() -> None:
    sqs = FakeSqs("q")
    assert letters_of(sqs).list(10) == []
    assert sqs.named("create_queue") == []


def test_a_queue_that_may_not_be_looked_up_is_an_error_and_not_an_empty_one() -> None:
    sqs = FakeSqs("q")
    sqs.fails["get_queue_url"] = refusal("AccessDenied")
    with pytest.raises(Exception, match="AccessDenied"):
        letters_of(sqs).list(10)
