"""Copies of SQS messages, and what a message tells."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from forwarder.brokers.sqs.messages import copy_of, open_message, queue_name
from tests.unit.brokers.sqs.fake import QUEUE_URL, raw_message

DEATH: dict[str, Any] = {"x-forwarder-death": {"DataType": "String", "StringValue": '{"code": "expired"}'}}


def body(text: str = "hello", **changes: Any) -> str:
    envelope = {"body": text, "headers": {"id": "t"}, "properties": {}} | changes
    return json.dumps(envelope)


def test_a_copy_has_the_very_same_body() -> None:
    copy = copy_of(raw_message(body=" {not json"), QUEUE_URL, {"a": 1})
    assert copy == {
        "MessageBody": " {not json",
        "MessageAttributes": {"a": {"DataType": "String", "StringValue": "1"}},
    }


def test_an_attribute_of_ours_replaces_the_last_one_or_takes_it_away() -> None:
    assert copy_of(raw_message(**DEATH), QUEUE_URL, {"x-forwarder-death": None})["MessageAttributes"] == {}
    again = copy_of(raw_message(**DEATH), QUEUE_URL, {"x-forwarder-death": {}})
    assert again["MessageAttributes"]["x-forwarder-death"]["StringValue"] == "{}"


def test_ours_finds_room_beside_as_many_attributes_as_sqs_takes() -> None:
    full: dict[str, Any] = {f"a{n}": {"DataType": "String", "StringValue": "x"} for n in range(10)}
    attributes = copy_of(raw_message(**full), QUEUE_URL, {"ours": 1})["MessageAttributes"]
    assert len(attributes) == 10
    assert "ours" in attributes


@pytest.mark.parametrize(
    ("raw", "headers", "text"),
    [
        (body(), {"id": "t"}, "hello"),
        (base64.b64encode(body().encode()).decode(), {"id": "t"}, "hello"),
        (body("aGk=", properties={"body_encoding": "base64"}), {"id": "t"}, "hi"),
        (body(headers=[1]), {}, "hello"),
        ("{", {}, "{"),
        ("no base64", {}, "no base64"),
        ("[1]", {}, "[1]"),
        (body(properties=5), {}, body(properties=5)),
        ("eA==", {}, "eA=="),
    ],
)
def test_whatever_the_body_is_it_can_be_opened(raw: str, headers: dict[str, Any], text: str) -> None:
    assert open_message(raw_message(body=raw)) == (headers, text)


def test_the_reason_of_death_stands_among_the_headers() -> None:
    headers, _ = open_message(raw_message(body="x", **DEATH))
    assert headers == {"x-forwarder-death": {"code": "expired"}}
    broken: dict[str, Any] = {"x-forwarder-death": {"DataType": "String", "StringValue": "{"}}
    assert open_message(raw_message(body="x", **broken))[0] == {}


def test_the_name_of_a_queue_ends_its_url_and_its_arn() -> None:
    assert queue_name("https://sqs.eu-west-1.amazonaws.com/1/q") == "q"
    assert queue_name("arn:aws:sqs:us-east-1:1:q.fifo") == "q.fifo"
