"""Results are written once, in Celery's own format, with errors that carry codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import Retry, TaskRevokedError
from kombu.exceptions import EncodeError

from forwarder.forwarding.errors import InvalidPayload, ResultTooLarge, as_forwarder_error
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
        return self.held.get(key.decode())

    def set(self, key: Any, value: Any) -> None:
        self.calls.append("set")
        self.held[key.decode()] = value

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


class S3:
    """The shared client, as far as the backend uses it."""

    class exceptions:  # noqa: N801 - boto3's own name
        class NoSuchKey(Exception):
            pass

    def __init__(self) -> None:
        self.puts: list[dict[str, Any]] = []

    def put_object(self, **kwargs: Any) -> None:
        self.puts.append(kwargs)

    def get_object(self, **kwargs: Any) -> dict[str, Any]:
        raise self.exceptions.NoSuchKey

    def delete_object(self, **kwargs: Any) -> None:
        self.puts = [put for put in self.puts if put["Key"] != kwargs["Key"]]


def test_a_result_in_s3_is_one_put_with_a_checksum_where_celery_looks_for_it() -> None:
    s3 = S3()
    app = Celery(set_as_current=False)
    app.conf.result_backend_transport_options = {"client": lambda: s3}
    backend = S3Backend(url="s3://bucket/tmp/celery/", app=app)
    backend.store_result("t1", {"x": "ü"}, states.SUCCESS)
    [put] = s3.puts
    assert put["Bucket"] == "bucket"
    assert put["Key"] == "tmp/celery/celery-task-meta-t1"
    assert put["ChecksumAlgorithm"] == "CRC32"
    assert json.loads(put["Body"])["result"] == {"x": "ü"}
    assert backend.get(b"celery-task-meta-t2") is None
    backend.delete("celery-task-meta-t1")
    assert s3.puts == []


def test_the_stores_own_limits_are_known() -> None:
    assert RedisBackend.value_bytes_max == 512 * 1024**2
    assert S3Backend.value_bytes_max == 5 * 1024**3
