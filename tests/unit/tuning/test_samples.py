"""Payloads out of files and messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from forwarder.tuning.samples import ENVELOPE_BYTES, Unreadable, from_lines, from_messages


def message(payload: Any, /, *, encoded: bool = True, **kwargs: Any) -> bytes:
    body = json.dumps([[] if payload is None else [payload], kwargs, {}])
    properties = {"body_encoding": "base64"} if encoded else {}
    text = base64.b64encode(body.encode()).decode() if encoded else body
    return json.dumps({"body": text, "headers": {"id": "1"}, "properties": properties}).encode()


def test_each_line_is_a_payload() -> None:
    samples = from_lines(['{"args": {"x": 1}}\n', "\n", '{"url": "s3://bucket/key"}\n'], unwrap=True)
    assert [sample.payload for sample in samples] == [{"args": {"x": 1}}, {"url": "s3://bucket/key"}]
    assert [sample.url for sample in samples] == [None, "s3://bucket/key"]
    # In base64, as it comes in a message.
    assert samples[0].message_bytes == ENVELOPE_BYTES + len('{"args": {"x": 1}}') * 4 // 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("secret", "line 2 is not JSON"),
        ('["secret"]', "line 2: payload must be a JSON object"),
        ('{"args": NaN}', "line 2"),
        ('{"args": 1, "url": "s3://secret/key"}', "line 2: payload has both"),
    ],
)
def test_a_line_that_holds_no_payload_is_named_and_not_quoted(line: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words) as raised:
        from_lines(['{"args": 1}', line], unwrap=True)
    assert "secret" not in str(raised.value)


def test_a_sample_shows_nothing_of_its_payload() -> None:
    (sample,) = from_lines(['{"args": "hunter2"}'], unwrap=True)
    assert "hunter2" not in repr(sample)


def test_messages_are_read_as_they_lie_in_the_queue() -> None:
    by_name = message(None, payload={"args": 3})
    items = [message({"args": 1}), message({"args": 2}, encoded=False), by_name]
    samples = from_messages(items, unwrap=True)
    assert [sample.payload["args"] for sample in samples] == [1, 2, 3]
    assert [sample.message_bytes for sample in samples] == [len(item) for item in items]


@pytest.mark.parametrize(
    "item",
    [b"", b"\xff", b"[]", b"{}", b'{"body": "x", "properties": {}}', message("text"), b"[" * 100_000],
)
def test_a_message_without_a_payload_is_left_out(item: bytes) -> None:
    assert len(from_messages([item, message({"args": 1})], unwrap=True)) == 1
