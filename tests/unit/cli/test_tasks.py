"""Waiting for a stored result and telling what it says, on a fake clock."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError
from kombu.exceptions import OperationalError
from redis.exceptions import ReadOnlyError

from forwarder.cli import tasks

SUCCESS = {"status": "SUCCESS", "result": {"result": 1, "status_code": 200}}
CUSTOM = '{"error": "no", "error_metadata": "", "code": "expired"}'
FAILURE = {"status": "FAILURE", "result": {"exc_type": "Expired", "exc_message": ["no"], "custom": CUSTOM}}


class Store:
    """Answers one read after the other from a list, the last one for ever; sleeping moves its clock."""

    def __init__(self, *answers: Mapping[str, Any] | None) -> None:
        self.answers = list(answers)
        self.now_s = 0.0
        self.reads = 0

    def read(self, task_id: str) -> Mapping[str, Any] | None:
        assert task_id == "id"
        self.reads += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def sleep(self, duration_s: float) -> None:
        assert duration_s > 0
        self.now_s += duration_s

    def wait(self, timeout_s: float) -> Mapping[str, Any] | None:
        return tasks.wait(self.read, "id", timeout_s, sleep=self.sleep, monotonic=lambda: self.now_s)


def test_an_ended_task_is_not_waited_for() -> None:
    store = Store(SUCCESS)
    assert store.wait(10) == SUCCESS
    assert (store.reads, store.now_s) == (1, 0)


def test_a_task_is_waited_for_through_its_states() -> None:
    store = Store(None, {"status": "STARTED", "result": None}, {"status": "RETRY", "result": None}, FAILURE)
    assert store.wait(10) == FAILURE
    assert store.now_s == pytest.approx(3 * tasks.POLL_INTERVAL_S)


@pytest.mark.parametrize("last", [None, {"status": "STARTED", "result": None}])
def test_waiting_ends_on_time_with_what_there_is(last: Mapping[str, Any] | None) -> None:
    store = Store(last)
    assert store.wait(1.1) == last
    assert store.now_s == pytest.approx(1.1)


def test_no_time_to_wait_is_one_read() -> None:
    store = Store(None)
    assert store.wait(0) is None
    assert store.reads == 1


@pytest.mark.parametrize(
    ("meta", "state", "code"),
    [
        (None, "PENDING", 1),
        ({"status": "STARTED", "result": None}, "STARTED", 1),
        (SUCCESS, "SUCCESS", 0),
        (FAILURE, "FAILURE", 1),
        ({"status": "REVOKED", "result": None}, "REVOKED", 1),
    ],
)
def test_only_success_is_0(meta: Mapping[str, Any] | None, state: str, code: int) -> None:
    assert tasks.state_of(meta) == state
    assert tasks.exit_code(meta) == code


def test_a_result_is_printed_as_json() -> None:
    assert json.loads(tasks.result_text(SUCCESS)) == SUCCESS["result"]


def test_a_failure_is_printed_as_its_error_object() -> None:
    assert tasks.result_text(FAILURE) == CUSTOM


def test_a_failure_without_an_error_object_is_printed_as_it_is() -> None:
    result = {"exc_type": "TaskRevokedError", "exc_message": ["revoked"]}
    assert json.loads(tasks.result_text({"status": "REVOKED", "result": result})) == result


@pytest.mark.parametrize("error", [ConnectionRefusedError("redis://:hunter2@host"), TimeoutError()])
def test_an_unreachable_service_is_exit_code_3_without_its_url(error: Exception) -> None:
    with pytest.raises(tasks.Unreachable) as refused, tasks.reaching("the broker"):
        raise error
    assert refused.value.exit_code == 3
    assert type(error).__name__ in refused.value.message
    assert "hunter2" not in refused.value.message


def refused_by_sqs() -> Exception:
    return ClientError({"Error": {"Code": "QueueDoesNotExist", "Message": "no"}}, "SendMessage")


def wrapped_by_kombu(cause: Exception) -> Exception:
    error = OperationalError("redis://:hunter2@host")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (wrapped_by_kombu(ReadOnlyError("hunter2")), "answers, but refuses (ReadOnlyError)"),
        (refused_by_sqs(), "answers, but refuses (QueueDoesNotExist)"),
        (wrapped_by_kombu(ConnectionRefusedError()), "can't be reached (ConnectionRefusedError)"),
    ],
)
def test_a_service_that_refuses_is_told_from_one_that_is_silent(error: Exception, said: str) -> None:
    with pytest.raises(tasks.Unreachable) as refused, tasks.reaching("the broker"):
        raise error
    assert refused.value.message == f"the broker {said}; see `forwarder check`"


def test_the_errors_of_a_client_that_is_imported_on_the_way_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    botocore = sys.modules["botocore"]
    monkeypatch.delitem(sys.modules, "botocore")

    def send() -> None:
        monkeypatch.setitem(sys.modules, "botocore", botocore)
        raise refused_by_sqs()

    with pytest.raises(tasks.Unreachable), tasks.reaching("the broker"):
        send()


def test_a_bug_is_not_taken_for_an_unreachable_service() -> None:
    with pytest.raises(ZeroDivisionError), tasks.reaching("the broker"):
        raise ZeroDivisionError
