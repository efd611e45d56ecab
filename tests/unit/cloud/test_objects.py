"""Objects in S3: what is read, what is refused, and what an error gives away."""

from __future__ import annotations

import errno
import io
import traceback
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.response import StreamingBody

from forwarder.cloud.objects import S3ObjectStore
from forwarder.forwarding.errors import InputUnavailable, InvalidPayload, OutputUnavailable
from forwarder.forwarding.ports import StagedBody

DENIED = ClientError(
    {"Error": {"Code": "AccessDenied", "Message": "arn:aws:iam::123:role/x may not read"}}, "GetObject"
)
UNREACHABLE = EndpointConnectionError(endpoint_url="https://internal.example")


class FakeS3:
    """One object, or one error."""

    def __init__(self, body: bytes = b"", error: Exception | None = None) -> None:
        self.body = body
        self.error = error
        self.stream = io.BytesIO(body)
        self.calls: list[dict[str, Any]] = []
        self.reads: list[bytes] = []

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.calls.append(arguments)
        if self.error:
            raise self.error
        body = StreamingBody(self.stream, len(self.body))
        return {"ContentLength": len(self.body), "ETag": '"tag"', "Body": body}

    def put_object(self, **arguments: Any) -> None:
        self.calls.append(arguments)
        if self.error:
            raise self.error
        if not isinstance(body := arguments["Body"], bytes):
            self.reads = list(iter(lambda: body.read(1024 * 1024), b""))


def store(s3: FakeS3) -> S3ObjectStore:
    return S3ObjectStore(client=lambda: s3)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_worker_without_file_descriptors_is_not_the_tasks_failure(wrapped: bool) -> None:
    """As botocore wraps it; a name that was not found is the task's failure."""
    try:
        try:
            raise OSError(errno.EMFILE if wrapped else errno.ENOENT, "Too many open files")
        except OSError as beneath:
            raise EndpointConnectionError(endpoint_url="https://internal.example", error=beneath)  # noqa: B904 - as botocore does
    except EndpointConnectionError as raised:
        s3 = FakeS3(error=raised)
    expected = (
        (EndpointConnectionError, EndpointConnectionError)
        if wrapped
        else (InputUnavailable, OutputUnavailable)
    )
    with pytest.raises(expected[0]):
        store(s3).open("s3://bucket/key")
    with pytest.raises(expected[1]):
        store(s3).write("s3://bucket/key", b"")


def test_an_object_is_opened_with_its_size_and_tag_and_read_piece_by_piece() -> None:
    s3 = FakeS3(b"12345")
    opened = store(s3).open("s3://bucket/some/key?with#signs")
    assert s3.calls == [{"Bucket": "bucket", "Key": "some/key?with#signs"}]
    assert (opened.size_bytes, opened.tag) == (5, '"tag"')
    assert [opened.read(3), opened.read(3), opened.read(3)] == [b"123", b"45", b""]


def test_an_object_is_opened_again_behind_what_was_read_and_only_if_it_is_the_same() -> None:
    s3 = FakeS3(b"45")
    store(s3).open("s3://bucket/key", after_bytes=3, tag='"tag"')
    assert s3.calls == [{"Bucket": "bucket", "Key": "key", "Range": "bytes=3-", "IfMatch": '"tag"'}]


def test_an_object_that_is_closed_unread_keeps_no_connection() -> None:
    s3 = FakeS3(b"12345")
    opened = store(s3).open("s3://bucket/key")
    opened.close()
    opened.close()
    assert s3.stream.closed


def test_an_object_that_breaks_off_may_be_gone_on_with() -> None:
    s3 = FakeS3(b"12345")
    opened = store(s3).open("s3://bucket/key")
    s3.stream.truncate(3)
    opened.read(3)
    with pytest.raises(InputUnavailable) as raised:
        opened.read(3)
    assert raised.value.again
    assert raised.value.metadata == "IncompleteReadError"
    with pytest.raises(InputUnavailable) as refused:
        store(FakeS3(error=DENIED)).open("s3://bucket/key")
    assert not refused.value.again


def test_an_answer_of_s3_that_broke_off_in_its_headers_is_no_object() -> None:
    s3 = FakeS3(b"12345")
    whole = s3.get_object
    s3.get_object = lambda **arguments: {"Body": whole(**arguments)["Body"]}  # type: ignore[method-assign]
    with pytest.raises(InputUnavailable) as raised:
        store(s3).open("s3://bucket/key")
    assert raised.value.again
    assert s3.stream.closed


def test_a_file_is_written_in_pieces_and_with_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(bytes(200_000))
    s3 = FakeS3()
    store(s3).write("s3://bucket/key", StagedBody(path=path, size_bytes=200_000))
    (call,) = s3.calls
    assert call.pop("Body").closed
    assert call == {"Bucket": "bucket", "Key": "key", "ChecksumAlgorithm": "CRC32"}
    assert list(map(len, s3.reads)) == [65536, 65536, 65536, 3392]


def test_an_object_is_written_with_a_checksum() -> None:
    s3 = FakeS3()
    store(s3).write("s3://bucket/key", b"body")
    assert s3.calls == [{"Bucket": "bucket", "Key": "key", "Body": b"body", "ChecksumAlgorithm": "CRC32"}]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket/key",
        "https://bucket/key",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///key",
        "s3://b/key",
        "s3://bu cket/key",
        "s3://user@bucket/key",
        "s3://bucket:80/key",
        "s3://bucket\n/key",
        "s3://bucket/" + "é" * 513,
        "s3://bucket/\ud800",
    ],
)
def test_a_url_that_names_no_object_is_the_payloads_fault(url: str) -> None:
    s3 = FakeS3()
    with pytest.raises(InvalidPayload):
        store(s3).open(url)
    with pytest.raises(InvalidPayload):
        store(s3).write(url, b"")
    assert s3.calls == []


@pytest.mark.parametrize(
    ("error", "metadata"),
    [
        (DENIED, "AccessDenied"),
        (UNREACHABLE, "EndpointConnectionError"),
        (ReadTimeoutError(endpoint_url="https://internal.example"), "ReadTimeoutError"),
    ],
)
def test_errors_are_translated_and_tell_aws_word_only(error: Exception, metadata: str) -> None:
    with pytest.raises(InputUnavailable) as reading:
        store(FakeS3(error=error)).open("s3://bucket/key")
    with pytest.raises(OutputUnavailable) as writing:
        store(FakeS3(error=error)).write("s3://bucket/key", b"")
    for raised in (reading.value, writing.value):
        assert raised.metadata == metadata
        assert "arn:" not in raised.to_custom()
        assert "internal.example" not in raised.to_custom()
        assert "bucket" not in raised.to_custom()
        # Celery's task-failed event and ddtrace's span carry this text.
        sent_out = "".join(traceback.format_exception(raised))
        assert "arn:" not in sent_out
        assert "internal.example" not in sent_out
