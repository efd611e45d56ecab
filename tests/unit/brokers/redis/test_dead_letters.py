"""How a message on Redis is told in the log, and shown once it is put aside."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from forwarder.brokers.deliveries import Death
from forwarder.brokers.redis.dead_letters import RedisDeadLetters, letter_of, letter_parts
from forwarder.brokers.redis.intake import Taken

DEATH = Death(
    code="invalid_message", error="no task", queue="q", deliveries=1, at="2030-01-01T00:00:00+00:00"
)
BODY = base64.b64encode(b"[[], {}, {}]").decode()
IN_BASE64 = {"body_encoding": "base64"}


def taken(item: bytes | None, **changes: Any) -> Taken:
    shape: dict[str, Any] = {"item_bytes": len(item or b""), **changes}
    return Taken(lease="1", queue="q", home="q", number=1, again=False, taken_s=0.0, item=item, **shape)


class Server:
    """A Redis server with one list."""

    def __init__(self, *items: bytes) -> None:
        self.items = items

    def llen(self, name: str) -> int:
        return len(self.items)

    def lrange(self, name: str, start: int, end: int) -> list[bytes]:
        return list(self.items)


def as_put_aside(item: bytes) -> bytes:
    """Return the letter that is made of an item: what is no envelope the server wraps, as bytes."""
    _, before, *after = letter_parts(item, None, DEATH)
    if not after:
        return before.encode()
    text = json.dumps(item.decode(errors="surrogateescape"), ensure_ascii=False)
    return before.encode() + text.encode(errors="surrogateescape") + after[0].encode()


@pytest.mark.parametrize(
    "item",
    [
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"body": 5, "properties": 7}',
        b'{"body": "text", "headers": []}',
        b'{"body": "text", "headers": {}}',
        b'{"body": "\\ud800", "headers": {}}',
        b'{"body": {"not": "text"}, "headers": {"id": 7}}',
        json.dumps({"body": BODY, "headers": {}, "properties": IN_BASE64}).encode(),
        json.dumps({"body": "no base64!", "headers": {}, "properties": IN_BASE64}).encode(),
        json.dumps({"body": BODY, "headers": {"id": "t1"}, "properties": IN_BASE64}).encode(),
    ],
)
def test_a_letter_is_told_by_the_id_and_size_that_the_dead_letters_show(item: bytes) -> None:
    letters = RedisDeadLetters(client=lambda: Server(as_put_aside(item)), queues=["q"])
    [letter] = letters.list(10)
    assert letter_of(taken(item), DEATH) == (letter.id, letter.body_bytes)
    assert letter.code == "invalid_message"
    assert letters.show(letter.id).letter == letter


@pytest.mark.parametrize(("task_id", "told"), [("t1", "t1"), (None, None), ("a\x1b[2J", None)])
def test_of_a_message_too_large_to_be_taken_an_id_is_told_that_was_found(
    task_id: str | None, told: str | None
) -> None:
    assert letter_of(taken(None, item_bytes=9_000_000, task_id=task_id), DEATH) == (told, 9_000_000)
