"""Results in S3: one conditional put, and what its refusals mean."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from celery import Celery, Task, states
from celery._state import _task_stack  # type: ignore[attr-defined]  # the stubs lack it
from celery.exceptions import Reject

from forwarder.forwarding.errors import DeadLettered, InternalError, InvalidPayload
from forwarder.forwarding.ports import Stored
from forwarder.results.patience import Patience
from forwarder.results.s3 import S3Backend


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


def _refused(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]  # as far as it is read


def _state(value: Any) -> str:
    return "FAILURE" if isinstance(value, Exception) else "SUCCESS"


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


def test_a_look_at_s3_reads_what_is_not_there_and_raises_what_a_task_would_meet() -> None:
    s3 = S3()
    s3_backend(s3).look()
    assert s3.puts == []
    s3.missing = _refused("NoSuchBucket", 404)
    with pytest.raises(ClientError):
        s3_backend(s3).look()
