"""Results are written once, in Celery's own format, with errors that carry codes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import Retry, TaskRevokedError
from kombu.exceptions import EncodeError

from forwarder.forwarding.errors import InternalError, InvalidPayload, ResultTooLarge, as_forwarder_error
from forwarder.forwarding.ports import Stored
from forwarder.results.redis import RedisBackend
from forwarder.results.s3 import S3Backend
from tests.unit.results.memory_backend import MemoryBackend


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(app=Celery(set_as_current=False))


def test_a_result_is_one_write_and_no_read(backend: MemoryBackend) -> None:
    backend.store_result("t1", {"result": 1}, states.SUCCESS)
    assert backend.calls == ["set"]
    meta = backend.meta("t1")
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", {"result": 1}, "t1")
    assert meta["date_done"]


@pytest.mark.parametrize(
    "state", [states.SUCCESS, states.FAILURE, states.STARTED, states.RETRY, states.REVOKED]
)
@pytest.mark.parametrize(
    "request_",
    [
        None,
        Context(id="t"),
        Context(id="t", group="g", parent_id="p"),
        Context(id="t", args=[1], root_id="r"),
    ],
)
def test_what_is_stored_is_to_the_byte_what_celery_makes_of_it(
    backend: MemoryBackend, state: str, request_: Context | None
) -> None:
    values = (state, None, request_)
    result = {
        "result": ["\u00e4\u2028\ud83d\ude00", 1.5, float("nan"), None, True],
        "at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    ours = backend._get_result_meta(result, *values)
    theirs: Any = KeyValueStoreBackend._get_result_meta(backend, result, *values)  # type: ignore[attr-defined]
    moments = [meta.pop("date_done") for meta in (ours, theirs)]
    assert [moment and datetime.fromisoformat(moment).tzinfo for moment in moments] == [
        UTC if state in states.READY_STATES else None
    ] * 2
    assert list(ours) == list(theirs)  # the order too
    stock: Any = KeyValueStoreBackend.encode(backend, theirs)
    assert backend.encode(ours) == stock


def test_a_failure_carries_the_error_object_and_no_traceback(backend: MemoryBackend) -> None:
    backend.mark_as_failure("t1", InvalidPayload("no good", "more"), traceback="File secret.py")
    meta = backend.meta("t1")
    assert meta["traceback"] is None
    assert meta["result"]["exc_type"] == "InvalidPayload"
    assert meta["result"]["exc_message"] == ["no good"]
    assert json.loads(meta["result"]["custom"]) == {
        "error": "no good",
        "error_metadata": "more",
        "code": "invalid_payload",
    }


def test_the_text_of_a_foreign_exception_is_not_stored(backend: MemoryBackend) -> None:
    backend.mark_as_failure("t1", ValueError("the payload said hunter2"))
    assert "hunter2" not in json.dumps(backend.meta("t1"))
    assert json.loads(backend.meta("t1")["result"]["custom"])["code"] == "internal"


def test_what_is_too_large_for_the_store_is_a_result_too_large(backend: MemoryBackend) -> None:
    with pytest.raises(EncodeError) as caught:
        backend.store_result("t1", "x" * 10_000, states.SUCCESS)
    error = as_forwarder_error(caught.value)
    assert isinstance(error, ResultTooLarge)
    assert "10000" in str(error)
    assert backend.held == {}


def test_the_stores_own_limits_are_known() -> None:
    assert RedisBackend.value_bytes_max == 512 * 1024**2
    assert S3Backend.value_bytes_max == 5 * 1024**3


def test_what_is_nested_too_deeply_to_store_fails_with_a_code(backend: MemoryBackend) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EncodeError) as caught:
        backend.store_result("t1", deep, states.SUCCESS)
    assert as_forwarder_error(caught.value).code == "invalid_response"


@pytest.mark.parametrize("error", [TaskRevokedError("revoked"), Retry("again")])
def test_celerys_own_exceptions_are_stored_as_celery_does(backend: MemoryBackend, error: Exception) -> None:
    assert backend.prepare_exception(error)["exc_module"] == "celery.exceptions"


def test_a_failure_is_an_exception_where_celery_asks_for_one_to_log(backend: MemoryBackend) -> None:
    error = backend.prepare_exception(ValueError("the payload said hunter2"), "pickle")
    assert isinstance(error, InternalError)
    assert "hunter2" not in str(error)


def test_what_was_stored_is_found_as_hooks_are_told_it(backend: MemoryBackend) -> None:
    assert backend.find("t1") is None
    backend.store_result("t1", {"result": 1}, states.SUCCESS)
    assert backend.find("t1") == Stored(state="SUCCESS", response={"result": 1})
    error = InvalidPayload("no good", "more")
    backend.mark_as_failure("t1", error)
    assert backend.find("t1") == Stored(state="FAILURE", response=error.to_dict(), code="invalid_payload")
    backend.mark_as_revoked("t1", "terminated")
    assert backend.find("t1") == Stored(state="REVOKED")


@pytest.mark.parametrize("state", [states.STARTED, states.RETRY, states.PENDING])
def test_a_task_that_is_under_way_has_no_outcome(backend: MemoryBackend, state: str) -> None:
    backend.store_result("t1", {}, state)
    assert backend.find("t1") is None


def test_the_failure_of_a_stock_worker_is_an_internal_error(backend: MemoryBackend) -> None:
    stock = {"exc_type": "ValueError", "exc_message": ["hunter2"], "exc_module": "builtins"}
    backend.held["celery-task-meta-t1"] = json.dumps({"status": "FAILURE", "result": stock})
    found = backend.find("t1")
    assert found is not None
    assert (found.state, found.code) == ("FAILURE", "internal")
    assert "hunter2" not in json.dumps(found.response)


@pytest.mark.parametrize("custom", ['"{}"', '"{\\"error\\": \\"x\\"}"', "null"])
def test_a_strangers_failure_is_an_outcome_whatever_it_holds(backend: MemoryBackend, custom: str) -> None:
    backend.held["celery-task-meta-t1"] = f'{{"status": "FAILURE", "result": {{"custom": {custom}}}}}'
    stored = backend.find("t1")
    assert stored is not None
    assert stored.code == "internal"


@pytest.mark.parametrize("value", ["not json", "[]", "{}"])
def test_what_nobody_can_read_is_no_outcome(backend: MemoryBackend, value: str) -> None:
    backend.held["celery-task-meta-t1"] = value
    assert backend.find("t1") is None


def test_pardons_add_up_beside_the_result_which_stays(backend: MemoryBackend) -> None:
    backend.store_result("t1", 1, "SUCCESS")
    assert backend.pardons("t1") == 0
    backend.pardon("t1")
    backend.pardon("t1")
    assert (backend.pardons("t1"), backend.pardons("t2")) == (2, 0)
    assert backend.find("t1") == Stored(state="SUCCESS", response=1)


@pytest.mark.parametrize("value", ["a result", '{"status": "SUCCESS"}', "1.5"])
def test_what_is_no_number_counts_for_nothing_and_stays(backend: MemoryBackend, value: str) -> None:
    """A client may choose such an id for another task."""
    backend.held["celery-task-meta-t1-pardons"] = value
    backend.pardon("t1")
    assert backend.pardons("t1") == 0
    assert backend.held["celery-task-meta-t1-pardons"] == value


def test_pardons_stand_where_results_do_and_are_not_one(backend: MemoryBackend) -> None:
    """What may read results may read them."""
    backend.pardon("t1")
    assert list(backend.held) == ["celery-task-meta-t1-pardons"]
    assert backend.find("t1-pardons") is None


def test_a_look_at_redis_is_a_write_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is full, or a replica, answers every read."""
    sent: list[Any] = []
    client = SimpleNamespace(set=lambda *args, **options: sent.append((args, options)))
    monkeypatch.setattr(RedisBackend, "client", client)
    RedisBackend(url="redis://localhost/0", app=Celery(set_as_current=False)).look()
    assert sent == [((b"celery-task-meta-forwarder-look", ""), {"xx": True})]
