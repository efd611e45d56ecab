"""The books of the demo: every way in which a task can be short of a result or a record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from forwarder.demo.account import Account, Outcome, SentTask, balance, expected_result, percentile_ms

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASK = SentTask(id="a", numbers=[3, -1, 4], sent_at=NOW)
ANSWER = {"id": "a", "sum": 6, "weighted_sum": 13, "sum_of_squares": 26}
RESULT = {"result": ANSWER, "status_code": 200}


def _outcome(value: Any = RESULT, error_code: str | None = None) -> Outcome:
    return Outcome(value=value, done_at=NOW, error_code=error_code)


def _record(**changes: Any) -> dict[str, Any]:
    return {
        "TASK_ID": "a",
        "REQUEST_BODY": json.dumps(TASK.payload),
        "RESPONSE_BODY": {**RESULT, "task_id": "a"},
    } | changes


def _balance(outcome: Outcome | None, *records: dict[str, Any], values_known: bool = True) -> Account:
    outcomes = {} if outcome is None else {"a": outcome}
    return balance([TASK], outcomes, records, values_known=values_known)


def test_a_task_with_its_result_and_its_record_is_in_balance() -> None:
    account = _balance(_outcome(), _record())
    assert account.balanced
    assert account.summary() == "demo: 1 sent, 1 results, 1 records, 0 lost"


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (None, "no result"),
        (_outcome(None, "inference_busy"), "failed with inference_busy"),
        (_outcome("text"), "result of an unknown shape"),
        (_outcome({**RESULT, "status_code": 500}), "status 500 from the model server"),
        (_outcome({**RESULT, "result": {**ANSWER, "sum": 7}}), "wrong result"),
    ],
)
def test_a_result_that_is_missing_or_wrong_is_lost_and_named(outcome: Outcome | None, fault: str) -> None:
    response = {} if outcome is None or not isinstance(outcome.value, dict) else outcome.value
    account = _balance(outcome, _record(RESPONSE_BODY={**response, "task_id": "a"}))
    assert (account.results, account.lost) == (0, 1)
    assert fault in account.faults


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([], "no record"),
        ([_record(), _record()], "2 records instead of one"),
        ([_record(RESPONSE_BODY="text")], "record without its task's id in the response"),
        ([_record(RESPONSE_BODY={**RESULT, "task_id": "b"})], "record without its task's id in the response"),
        ([_record(REQUEST_BODY="{}")], "record with another request"),
        ([_record(REQUEST_BODY="{")], "record with another request"),
        ([_record(REQUEST_BODY=None)], "record with another request"),
        ([_record(RESPONSE_BODY={"result": 0, "task_id": "a"})], "record with another response"),
    ],
)
def test_a_record_that_is_missing_double_or_wrong_is_lost_and_named(
    records: list[dict[str, Any]], fault: str
) -> None:
    account = _balance(_outcome(), *records)
    assert (account.results, account.records, account.lost) == (1, 0, 1)
    assert list(account.faults) == [fault]


def test_a_record_of_a_task_that_was_not_sent_spoils_the_balance() -> None:
    account = _balance(_outcome(), _record(), _record(TASK_ID="x"))
    assert account.lost == 0
    assert not account.balanced
    assert account.complaints() == ["record of a task that was not sent: 1 (x)"]


def test_another_model_servers_answer_need_only_be_a_success() -> None:
    other = {"result": "anything", "status_code": 200}
    record = _record(RESPONSE_BODY={**other, "task_id": "a"})
    assert _balance(_outcome(other), record, values_known=False).balanced
    assert not _balance(_outcome(other), record, values_known=True).balanced


def test_the_accounts_of_two_ways_add_up() -> None:
    both = _balance(_outcome(), _record()) + _balance(None, _record())
    assert both.summary() == "demo: 2 sent, 1 results, 2 records, 1 lost"
    assert both.complaints() == ["no result: 1 (a)"]


def test_a_long_list_of_ids_is_cut() -> None:
    account = Account(sent=7, results=0, records=7, lost=7, faults={"no result": list("abcdefg")})
    assert account.complaints() == ["no result: 7 (a, b, c, d, e, …)"]


def test_the_expected_result_is_the_three_sums() -> None:
    assert expected_result(TASK) == ANSWER


@pytest.mark.parametrize(("percent", "expected_ms"), [(50, 50_000), (99, 99_000), (100, 100_000)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected_ms: float) -> None:
    assert percentile_ms([float(second) for second in range(100, 0, -1)], percent) == expected_ms


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no latency"):
        percentile_ms([], 50)
