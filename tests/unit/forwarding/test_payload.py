"""Payloads in, results out: pure functions, by table."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from forwarder.forwarding import errors
from forwarder.forwarding.payload import (
    ERROR_TEXT_CHARS_MAX,
    ResultShape,
    decode_answer,
    encode_body,
    parse_arrival,
    parse_expires,
    parse_payload,
)
from forwarder.forwarding.ports import Answer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def answer(body: bytes, status: int = 200) -> Answer:
    return Answer(status=status, body=body, headers={"content-type": "text/html"}, elapsed_s=0.1)


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        ({"args": {"x": 1}}, {"x": 1}),
        ({"args": [1, 2]}, [1, 2]),
        ({"args": 0}, 0),
        ({"args": ""}, ""),
        ({"x": 1}, {"x": 1}),
        ({}, {}),
        ({"args": {"x": 1}, "unknown": "key"}, {"x": 1}),
        ({"args": {}, "cloudpickle": None, "return_pickled": False, "url": None, "callback_url": None}, {}),
    ],
)
def test_the_body_is_what_stands_under_args_or_the_whole_payload(payload: Any, body: Any) -> None:
    assert parse_payload(payload, unwrap=True).body == body


def test_without_unwrapping_the_payload_is_sent_as_it_is() -> None:
    payload = {"args": {"x": 1}, "url": "https://images.example/cat.png"}
    parsed = parse_payload(payload, unwrap=False)
    assert parsed.body == payload
    assert parsed.url is None


@pytest.mark.parametrize("payload", [None, 1, 1.5, True, "text", [], ["args"]])
def test_a_payload_that_is_no_object_is_refused(payload: Any) -> None:
    with pytest.raises(errors.InvalidPayload, match="must be a JSON object"):
        parse_payload(payload, unwrap=True)


@pytest.mark.parametrize("key", ["cloudpickle", "return_pickled"])
def test_pickling_is_refused_whether_or_not_the_payload_is_unwrapped(key: str) -> None:
    for unwrap in (True, False):
        with pytest.raises(errors.PickleRefused, match=key):
            parse_payload({"args": {}, key: "gASVCg=="}, unwrap=unwrap)


@pytest.mark.parametrize(
    "payload",
    [
        {"args": None},
        {"args": {}, "url": "s3://bucket/key"},
        {"url": 5},
        {"url": ""},
        {"args": {}, "destination_path": ["s3://bucket/key"]},
        {"args": {}, "destination_path": "/etc/passwd"},
        {"args": {}, "destination_path": "https://bucket/key"},
    ],
)
def test_a_payload_with_a_key_of_the_wrong_kind_is_refused(payload: Any) -> None:
    with pytest.raises(errors.InvalidPayload):
        parse_payload(payload, unwrap=True)


def test_a_payloads_text_does_not_show_in_its_repr() -> None:
    assert "secret" not in repr(parse_payload({"args": {"key": "secret"}}, unwrap=True))


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body", [float("nan"), {"x": float("inf")}, _nested(200_000), "\ud800", {"when": NOW}, {"x": {1, 2}}]
)
def test_what_json_cant_say_is_an_invalid_payload_without_its_value(body: Any) -> None:
    with pytest.raises(errors.InvalidPayload) as caught:
        encode_body(body)
    assert "2026" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_body_is_sent_as_utf8() -> None:
    assert encode_body({"text": "größer"}) == '{"text":"größer"}'.encode()


@pytest.mark.parametrize(
    ("body", "status", "response"),
    [
        (b'{"y": 2}', 200, {"y": 2}),
        (b"null", 200, None),
        (b"[1]", 201, [1]),
        (b"", 204, None),
        (b'{"detail": "no"}', 422, {"detail": "no"}),
        (b"<html>oops</html>", 500, "<html>oops</html>"),
        (b"", 500, None),
        (b"\xff\xfe", 500, "\ufffd\ufffd"),
        (b"NaN", 500, "NaN"),
        (b'{"x": 1e300, "text": "E999"}', 200, {"x": 1e300, "text": "E999"}),
    ],
)
def test_an_answer_becomes_a_response(body: bytes, status: int, response: Any) -> None:
    assert decode_answer(answer(body, status)) == response


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{",
        b'{"x": NaN}',
        b'{"x": 1e999}',
        b'{"x": -1E+400}',
        b"1" * 400 + b".0",
        b"\xff\xfe{}",
        b"[" * 200_000,
    ],
)
@pytest.mark.parametrize("status", [200, 302])
def test_an_answer_that_is_no_json_is_an_invalid_response(body: bytes, status: int) -> None:
    with pytest.raises(errors.InvalidResponse) as caught:
        decode_answer(answer(body, status))
    assert "html>" not in caught.value.to_custom()
    assert f"{len(body)} bytes" in caught.value.metadata


@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_an_empty_answer_has_a_code_of_its_own(body: bytes) -> None:
    with pytest.raises(errors.EmptyResponse):
        decode_answer(answer(body))


def test_a_long_error_page_is_cut() -> None:
    assert len(decode_answer(answer(b"x" * 1_000_000, 500))) == ERROR_TEXT_CHARS_MAX


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        (ResultShape(), {"result": {"y": 2}, "status_code": 200}),
        (ResultShape(as_string=True), {"result": '{"y": 2}', "status_code": 200}),
        (ResultShape(status_in_body=False), {"result": {"y": 2}}),
        (ResultShape(wrap=False), {"y": 2}),
    ],
)
def test_a_response_becomes_a_result_of_the_configured_shape(shape: ResultShape, result: Any) -> None:
    assert shape.build({"y": 2}, 200) == result


@pytest.mark.parametrize(
    ("arrival", "moment"),
    [
        ("2026-01-02T03:04:00", NOW - timedelta(seconds=5)),
        ("2026-01-02T04:04:00+01:00", NOW - timedelta(seconds=5)),
        (
            datetime(2026, 1, 2, 3, 4, 0),  # noqa: DTZ001 - what kombu makes of a naive one
            NOW - timedelta(seconds=5),
        ),
        (NOW.timestamp() - 5, NOW - timedelta(seconds=5)),
        (NOW + timedelta(minutes=4), NOW),  # clock skew: now
        (NOW + timedelta(minutes=6), None),  # not believed
        ("yesterday", None),
        (None, None),
        (True, None),
        (float("nan"), None),
        (1e300, None),
        ({}, None),
    ],
)
def test_an_arrival_time_is_read_or_given_up(arrival: Any, moment: datetime | None) -> None:
    assert parse_arrival(arrival, now=NOW) == moment


def test_expires_is_read_in_utc() -> None:
    assert parse_expires(None) is None
    assert parse_expires("2026-01-02T03:04:05") == NOW
    assert parse_expires("2026-01-02T04:04:05+01:00") == NOW


@pytest.mark.parametrize("expires", ["soon", 5, {}, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_expires_header_that_cant_be_read_is_refused(expires: Any) -> None:
    with pytest.raises(errors.InvalidPayload, match="expires"):
        parse_expires(expires)


def test_every_code_is_one_word_and_belongs_to_one_error() -> None:
    def tree(cls: type[errors.ForwarderError]) -> list[type[errors.ForwarderError]]:
        return [cls, *(leaf for child in cls.__subclasses__() for leaf in tree(child))]

    classes = [cls for cls in tree(errors.ForwarderError)[1:] if cls.__module__ == errors.__name__]
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)
    for cls in classes:  # Celery rebuilds an exception from its message alone
        assert json.loads(cls("why").to_custom()) == {"error": "why", "error_metadata": "", "code": cls.code}
