"""The record of the logging hook: the contract's keys, one line, AWS's limit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.forwarding.ports import Completion
from forwarder.hooks.firehose_record import build_record
from forwarder.settings.model import EndpointIdentity

LIMIT_BYTES = 1000 * 1024
ENDPOINT = EndpointIdentity(
    id="end_1", name="resnet", type="async", bundle_id="bun_1", labels={"team": "vision"}, user_id="u"
)


def record_of(payload: Any, response: Any, endpoint: EndpointIdentity = ENDPOINT) -> bytes:
    completion = Completion(task_id="t-1", payload=payload, response=response, succeeded=True)
    return build_record(completion, endpoint=endpoint, emitted_at=1_700_000_000.9)


def test_the_record_is_what_the_contract_says() -> None:
    line = record_of({"args": {"x": "é"}}, {"result": {"y": 2}, "status_code": 200})
    record = json.loads(line)
    assert record == {
        "EMITTED_AT": "2023-11-14T22:13:20",
        "REQUEST_BODY": '{"args": {"x": "é"}}',
        "RESPONSE_BODY": {"result": {"y": 2}, "status_code": 200, "task_id": "t-1"},
        "ENDPOINT_ID": "end_1",
        "ENDPOINT_NAME": "resnet",
        "ENDPOINT_TYPE": "async",
        "BUNDLE_ID": "bun_1",
        "LABELS": {"team": "vision"},
        "TASK_ID": "t-1",
    }
    assert json.loads(record["REQUEST_BODY"]) == {"args": {"x": "é"}}


def test_without_an_identity_the_keys_are_there_and_null() -> None:
    record = json.loads(record_of({}, {}, EndpointIdentity()))
    names = ("ENDPOINT_ID", "ENDPOINT_NAME", "ENDPOINT_TYPE", "BUNDLE_ID")
    assert [record[name] for name in names] == [None] * 4
    assert record["LABELS"] == {}


@pytest.mark.parametrize("response", ["text", ["a"], None, 3])
def test_a_response_that_is_no_object_stands_under_result(response: Any) -> None:
    assert json.loads(record_of({}, response))["RESPONSE_BODY"] == {"result": response, "task_id": "t-1"}


def test_the_stored_response_is_left_as_it_is() -> None:
    response = {"result": 1}
    record_of({}, response)
    assert response == {"result": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(payload=JSON, response=JSON)
def test_any_json_becomes_one_line_of_utf8_that_says_the_same(payload: Any, response: Any) -> None:
    line = record_of(payload, response)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    record = json.loads(line.decode("utf-8"))
    assert json.loads(record["REQUEST_BODY"]) == payload
    if not isinstance(response, dict):
        assert record["RESPONSE_BODY"]["result"] == response


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("body", [float("nan"), float("inf"), {"x": {1, 2}}, deep(100_000)])
def test_a_body_that_json_cannot_say_is_left_out_and_the_record_still_goes(body: Any) -> None:
    record = json.loads(record_of(body, body))
    assert json.loads(record["REQUEST_BODY"]) == {"omitted": "not_json", "omitted_bytes": None}
    assert record["RESPONSE_BODY"] == {"omitted": "not_json", "omitted_bytes": None, "task_id": "t-1"}
    assert record["TASK_ID"] == "t-1"


def test_a_record_of_exactly_awss_limit_goes_whole_and_a_byte_more_is_shortened() -> None:
    fits = LIMIT_BYTES - len(record_of("", {}))
    assert len(record_of("x" * fits, {})) == LIMIT_BYTES
    record = json.loads(record_of("x" * (fits + 1), {"result": 1}))
    assert json.loads(record["REQUEST_BODY"]) == {"omitted": "record_too_large", "omitted_bytes": fits + 3}


def test_the_larger_body_is_left_out_first() -> None:
    large, larger = "x" * 600_000, "y" * 1_100_000
    request_kept = json.loads(record_of("small", larger))
    assert request_kept["REQUEST_BODY"] == '"small"'
    assert request_kept["RESPONSE_BODY"]["omitted"] == "record_too_large"
    assert request_kept["RESPONSE_BODY"]["task_id"] == "t-1"
    response_kept = json.loads(record_of(larger, large))
    assert json.loads(response_kept["REQUEST_BODY"])["omitted_bytes"] == 1_100_002
    assert response_kept["RESPONSE_BODY"]["result"] == large


def test_both_bodies_are_left_out_when_either_is_too_large() -> None:
    line = record_of("x" * 2_000_000, "y" * 3_000_000)
    record = json.loads(line)
    assert len(line) < 1000
    assert json.loads(record["REQUEST_BODY"])["omitted_bytes"] == 2_000_002
    assert record["RESPONSE_BODY"]["omitted_bytes"] > 3_000_000
