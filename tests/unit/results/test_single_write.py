"""Results are written once, in Celery's own format, with errors that carry codes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from celery import Celery, Task, states
from celery._state import _task_stack  # type: ignore[attr-defined]  # the stubs lack it
from celery.app.task import Context
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import Reject, Retry, TaskRevokedError
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str

from forwarder.forwarding.errors import (
    DeadLettered,
    InternalError,
    InvalidPayload,
    ResultTooLarge,
    as_forwarder_error,
)
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


class AwayBackend(MemoryBackend):
    """Fails so many times at each operation."""

    fails = 0
    error: Exception = ConnectionError("store.example.com")

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        return isinstance(exc, ConnectionError)

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
            raise self.error


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
def test_pardons_wait_for_a_store_that_is_away_and_for_nothing_that_may_last(
    away: AwayBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a task that is to fail for good would go round for as long as they can't be read."""
    away.pardon("t1")
    away.fails = 2
    assert away.pardons("t1") == 1
    away.error = redis.exceptions.NoPermissionError("store.example.com")
    away.fails, away.calls = 5, []
    assert away.pardons("t1") == 0
    assert away.calls == ["failed"]
    assert caplog.text.count("pardons_unreadable task_id=t1 error=NoPermissionError") == 1
    assert "store.example.com" not in caplog.text


def _refused(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]  # as far as it is read


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (redis.ConnectionError(), True),
        (redis.TimeoutError(), True),
        (redis.exceptions.NoPermissionError(), False),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed"), False),
    ],
)
def test_redis_is_away_where_it_can_not_be_reached(error: Exception, is_away: bool) -> None:
    backend = RedisBackend(app=Celery(set_as_current=False), url="redis://127.0.0.1:1")
    assert backend.exception_safe_to_retry(error) is is_away


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (EndpointConnectionError(endpoint_url="x"), True),
        (ReadTimeoutError(endpoint_url="x"), True),
        (_refused("SlowDown", 503), True),
        (_refused("ConditionalRequestConflict", 409), True),
        (_refused("AccessDenied", 403), False),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed"), False),
    ],
)
def test_s3_is_away_where_it_can_not_be_reached_or_says_so(error: Exception, is_away: bool) -> None:
    assert s3_backend(S3()).exception_safe_to_retry(error) is is_away


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
        self.gets = 0
        self.body: bytes | None = None
        self.answers_lost = 0
        self.missing: Exception = self.exceptions.NoSuchKey()

    def put_object(self, **kwargs: Any) -> None:
        if kwargs.get("IfNoneMatch") == "*" and self.body is not None:
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
        self.puts.append(kwargs)
        self.body = kwargs["Body"]
        if self.answers_lost:
            self.answers_lost -= 1
            raise ConnectionError

    def get_object(self, **kwargs: Any) -> dict[str, Any]:
        if kwargs["Key"].endswith("t2") or self.body is None:
            raise self.missing
        self.gets += 1
        return {"Body": io.BytesIO(self.body)}

    def delete_object(self, **kwargs: Any) -> None:
        self.puts = [put for put in self.puts if put["Key"] != kwargs["Key"]]


def s3_backend(s3: S3, **options: Any) -> S3Backend:
    app = Celery(set_as_current=False)
    app.conf.result_backend_transport_options = {"client": lambda: s3, **options}
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


@pytest.mark.parametrize("final", [{"result": 1}, InvalidPayload("no")])
@pytest.mark.parametrize("first", [{"result": 1}, InvalidPayload("no"), InternalError("stored by a peer")])
def test_in_s3_the_first_outcome_stays_and_whoever_comes_later_goes_back_to_find_it(
    first: Any, final: Any
) -> None:
    s3 = S3()
    s3_backend(s3).store_result("t1", first, _state(first))
    with pytest.raises(Reject) as caught:
        s3_backend(s3).store_result("t1", final, _state(final))
    assert caught.value.args == ("already_committed", True)  # the second is: requeue
    assert len(s3.puts) == 1


@pytest.mark.parametrize(
    ("state", "value"),
    [("STARTED", {"pid": 1}), ("RETRY", InvalidPayload("busy")), ("FAILURE", DeadLettered("5 times"))],
)
def test_in_s3_what_is_not_final_is_replaced(state: str, value: Any) -> None:
    s3 = S3()
    backend = s3_backend(s3)
    backend.store_result("t1", value, state)
    backend.store_result("t1", {"result": 1}, states.SUCCESS)
    assert backend.find("t1") == Stored(state="SUCCESS", response={"result": 1})


def test_in_s3_a_write_whose_answer_was_lost_finds_itself() -> None:
    s3 = S3()
    backend = s3_backend(s3, patience=Patience(bound_s=60.0, sleep=lambda seconds: None))
    s3.answers_lost = 1
    _task_stack.push(Task())
    try:
        backend.store_result("t1", {"result": 1}, states.SUCCESS)
    finally:
        _task_stack.pop()
    assert (len(s3.puts), s3.gets) == (1, 1)


def test_where_every_task_stores_that_it_started_it_looks_first_and_replaces_that_without_another_read() -> (
    None
):
    s3 = S3()
    assert not s3_backend(s3).looks_first
    backend = s3_backend(s3, looks_first=True)
    assert backend.looks_first
    backend.store_result("t1", {"pid": 1}, "STARTED")
    backend.store_result("t1", {"result": 1}, states.SUCCESS)
    assert (len(s3.puts), s3.gets) == (2, 0)


def _state(value: Any) -> str:
    return "FAILURE" if isinstance(value, Exception) else "SUCCESS"


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
