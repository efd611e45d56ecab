"""Results are written once, in Celery's own format, with errors that carry codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from botocore.exceptions import ClientError
from celery import Celery, Task, states
from celery._state import _task_stack  # type: ignore[attr-defined]  # the stubs lack it
from celery.app.task import Context
from celery.exceptions import Reject, Retry, TaskRevokedError
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str

from forwarder.forwarding.errors import InternalError, InvalidPayload, ResultTooLarge, as_forwarder_error
from forwarder.forwarding.ports import Stored
from forwarder.results.patience import Patience
from forwarder.results.redis import RedisBackend
from forwarder.results.s3 import S3Backend
from forwarder.results.single_write import SingleWriteBackend


class MemoryBackend(SingleWriteBackend):
    """Keeps values in a dict and notes every call."""

    value_bytes_max = 10_000

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held: dict[str, str] = {}
        self.calls: list[str] = []

    def get(self, key: Any) -> str | None:
        self.calls.append("get")
        return self.held.get(bytes_to_str(key))

    def set(self, key: Any, value: Any) -> None:
        self.calls.append("set")
        self.held[bytes_to_str(key)] = value

    def meta(self, task_id: str) -> dict[str, Any]:
        return dict(json.loads(self.held[f"celery-task-meta-{task_id}"]))


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(app=Celery(set_as_current=False))


def test_a_result_is_one_write_and_no_read(backend: MemoryBackend) -> None:
    backend.store_result("t1", {"result": 1}, states.SUCCESS)
    assert backend.calls == ["set"]
    meta = backend.meta("t1")
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", {"result": 1}, "t1")
    assert meta["date_done"]


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


class AwayBackend(MemoryBackend):
    """Fails so many times at each operation."""

    fails = 0

    def set(self, key: Any, value: Any) -> None:
        self._fail()
        super().set(key, value)

    def get(self, key: Any) -> str | None:
        self._fail()
        return super().get(key)

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            self.calls.append("failed")
            raise ConnectionError("store.example.com")


@pytest.fixture
def away() -> AwayBackend:
    app = Celery(set_as_current=False)
    patience = Patience(bound_s=60.0, sleep=lambda seconds: None)
    app.conf.result_backend_transport_options = {"patience": patience}
    return AwayBackend(app=app)


@pytest.fixture
def in_a_task(away: AwayBackend) -> Iterator[None]:
    class Running(Task[..., Any]):
        name = "running"

    _task_stack.push(away.app.register_task(Running()))  # type: ignore[attr-defined]
    yield
    _task_stack.pop()


@pytest.mark.usefixtures("in_a_task")
def test_a_running_task_waits_for_its_store(away: AwayBackend) -> None:
    away.fails = 3
    away.store_result("t1", {"result": 1}, states.SUCCESS)
    away.fails = 2
    assert away.find("t1") is not None
    assert away.calls == ["failed"] * 3 + ["set"] + ["failed"] * 2 + ["get"]


@pytest.mark.usefixtures("in_a_task")
def test_a_running_task_whose_store_stays_away_goes_back_to_the_queue(away: AwayBackend) -> None:
    away._patience = Patience(bound_s=0.0)
    for step in (lambda: away.store_result("t1", {}, states.SUCCESS), lambda: away.find("t1")):
        away.fails = 1
        with pytest.raises(Reject) as caught:
            step()
        assert caught.value.args == ("result_store_unavailable", True)  # the second is: requeue
        assert caught.value.__suppress_context__


@pytest.mark.usefixtures("in_a_task")
def test_what_can_never_be_stored_is_not_tried_again(away: AwayBackend) -> None:
    away.fails = 5
    with pytest.raises(EncodeError):
        away.store_result("t1", "x" * 10_000, states.SUCCESS)
    assert away.calls == []


def test_outside_of_a_task_nobody_waits(away: AwayBackend) -> None:
    """The worker's main loop stores the outcome of a task that was revoked or refused."""
    away.fails = 1
    with pytest.raises(ConnectionError):
        away.store_result("t1", InvalidPayload("no"), states.FAILURE)
    away.fails = 1
    with pytest.raises(Reject):
        away.store_result("t1", InvalidPayload("no"), states.FAILURE, request=Context({"id": "t1"}))
    assert away.calls == ["failed", "failed"]


def test_redis_is_asked_once_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own twenty tries sleep where the worker's main loop must not."""
    backend = RedisBackend(app=Celery(set_as_current=False), url="redis://127.0.0.1:1")
    tries = []

    def refuse(*args: Any) -> None:
        tries.append(args)
        raise redis.ConnectionError

    monkeypatch.setattr(backend, "_set", refuse)
    with pytest.raises(redis.ConnectionError):
        backend.store_result("t1", {}, states.SUCCESS)
    assert len(tries) == 1


class S3:
    """The shared client, as far as the backend uses it."""

    class exceptions:  # noqa: N801 - boto3's own name
        class NoSuchKey(Exception):
            pass

    def __init__(self) -> None:
        self.puts: list[dict[str, Any]] = []
        self.missing: Exception = self.exceptions.NoSuchKey()

    def put_object(self, **kwargs: Any) -> None:
        self.puts.append(kwargs)

    def get_object(self, **kwargs: Any) -> dict[str, Any]:
        raise self.missing

    def delete_object(self, **kwargs: Any) -> None:
        self.puts = [put for put in self.puts if put["Key"] != kwargs["Key"]]


def s3_backend(s3: S3) -> S3Backend:
    app = Celery(set_as_current=False)
    app.conf.result_backend_transport_options = {"client": lambda: s3}
    return S3Backend(url="s3://bucket/tmp/celery/", app=app)


def test_a_result_in_s3_is_one_put_with_a_checksum_where_celery_looks_for_it() -> None:
    s3 = S3()
    backend = s3_backend(s3)
    backend.store_result("t1", {"x": "ü"}, states.SUCCESS)
    [put] = s3.puts
    assert put["Bucket"] == "bucket"
    assert put["Key"] == "tmp/celery/celery-task-meta-t1"
    assert put["ChecksumAlgorithm"] == "CRC32"
    assert json.loads(put["Body"])["result"] == {"x": "ü"}
    assert backend.get(b"celery-task-meta-t2") is None
    backend.delete("celery-task-meta-t1")
    assert s3.puts == []


def test_a_denied_look_for_a_result_names_the_permissions_once(caplog: pytest.LogCaptureFixture) -> None:
    s3 = S3()
    backend = s3_backend(s3)
    s3.missing = ClientError({"Error": {"Code": "AccessDenied", "Message": "of account 1"}}, "GetObject")
    for _ in range(3):
        with pytest.raises(ClientError):
            backend.get("celery-task-meta-t1")
    [line] = caplog.messages
    assert "s3:ListBucket" in line
    assert "account" not in line
    s3.missing = S3.exceptions.NoSuchKey()
    assert backend.get("celery-task-meta-t1") is None


def test_the_stores_own_limits_are_known() -> None:
    assert RedisBackend.value_bytes_max == 512 * 1024**2
    assert S3Backend.value_bytes_max == 5 * 1024**3
