"""What a dead letter tells about itself, whatever shape its message has."""

from __future__ import annotations

from typing import Any

import pytest

from forwarder.brokers.dead_letters import (
    DEATH_HEADER,
    DELIVERIES_HEADER,
    OpenedLetter,
    dead_queue,
    earlier_deliveries,
    read_letter,
    with_death,
    without_death,
)
from forwarder.brokers.deliveries import Death

DEATH = Death(
    code="dead_lettered", error="too often", queue="q", deliveries=6, at="2030-01-01T00:00:00+00:00"
)
HEADERS = {"id": "t1", "task": "forwarder.forward", DELIVERIES_HEADER: 5}


def test_a_letter_tells_its_task_and_the_reason() -> None:
    letter = read_letter(with_death(HEADERS, DEATH), b"12345", queue="other")
    assert (letter.id, letter.task_id, letter.task) == ("t1", "t1", "forwarder.forward")
    assert (letter.code, letter.error, letter.queue) == ("dead_lettered", "too often", "q")
    assert (letter.deliveries, letter.at, letter.body_bytes) == (6, DEATH.at, 5)


def test_a_message_that_starts_anew_has_neither_reason_nor_count() -> None:
    assert without_death(with_death(HEADERS, DEATH)) == {"id": "t1", "task": "forwarder.forward"}


def test_the_messages_own_headers_are_left_alone() -> None:
    headers = dict(HEADERS)
    with_death(headers, DEATH)
    assert headers == HEADERS


def test_a_reason_that_a_producer_made_up_is_replaced() -> None:
    assert with_death({DEATH_HEADER: "faked"}, DEATH)[DEATH_HEADER]["code"] == "dead_lettered"


@pytest.mark.parametrize(
    "headers",
    [
        None,
        "text",
        [],
        {},
        {"id": 7, "task": {}},
        {"id": ""},
        {DEATH_HEADER: "text"},
        {DEATH_HEADER: {"code": 1}},
    ],
)
def test_a_message_without_readable_headers_has_an_id_of_its_body(headers: Any) -> None:
    letter = read_letter(headers, "{", queue="q")
    assert letter == read_letter(headers, b"{", queue="q"), "the same at every look"
    assert letter.id.startswith("body-")
    assert letter.id != read_letter(headers, "}", queue="q").id
    assert (letter.task_id, letter.code, letter.queue, letter.deliveries) == (None, "unknown", "q", 0)


def test_an_id_that_can_not_be_typed_is_replaced_but_its_result_is_found() -> None:
    letter = read_letter({"id": "a\x1b[2J"}, b"", queue="q")
    assert letter.id.startswith("body-")
    assert letter.task_id == "a\x1b[2J"


def test_a_body_that_is_no_unicode_has_a_size() -> None:
    assert read_letter({}, "\ud800", queue="q").body_bytes == 3


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({DELIVERIES_HEADER: 3}, 3),
        ({}, 0),
        (None, 0),
        ({DELIVERIES_HEADER: "3"}, 0),
        ({DELIVERIES_HEADER: True}, 0),
        ({DELIVERIES_HEADER: -1}, 0),
    ],
)
def test_only_a_count_counts(headers: Any, count: int) -> None:
    assert earlier_deliveries(headers) == count


def test_an_id_that_no_result_can_be_stored_under_has_none_to_be_forgotten() -> None:
    letter = read_letter({"id": "\ud800"}, b"", queue="q")
    assert letter.task_id is None
    assert letter.id.startswith("body-")


def test_the_payload_is_not_in_a_repr() -> None:
    opened = OpenedLetter(
        letter=read_letter(HEADERS, "hunter2", queue="q"), headers={"argsrepr": "hunter2"}, body="hunter2"
    )
    assert "hunter2" not in repr(opened)


def test_the_dead_letters_of_a_queue_are_beside_it() -> None:
    assert dead_queue("tasks") == "tasks.dead"
