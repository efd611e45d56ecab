"""Objects in S3: what is read, what is refused, and what an error gives away."""

from __future__ import annotations

import errno
import io
import traceback
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.response import StreamingBody

from forwarder.cloud.objects import S3ObjectStore
from forwarder.forwarding.errors import InputUnavailable, InvalidPayload, OutputUnavailable

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

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.calls.append(arguments)
        if self.error:
            raise self.error
        return {"ContentLength": len(self.body), "Body": StreamingBody(self.stream, len(self.body))}

    def put_object(self, **arguments: Any) -> None:
        self.calls.append(arguments)
        if self.error:
            raise self.error


def store(s3: FakeS3) -> S3ObjectStore:
    return S3ObjectStore(client=lambda: s3)


def test_an_object_up_to_the_bound_is_read() -> None:
    s3 = FakeS3(b"12345")
    assert store(s3).read("s3://bucket/some/key?with#signs", max_bytes=5) == b"12345"
    assert s3.calls == [{"Bucket": "bucket", "Key": "some/key?with#signs"}]


def test_an_object_beyond_the_bound_is_refused_unread_and_its_connection_closed() -> None:
    s3 = FakeS3(b"123456")
    with pytest.raises(InvalidPayload, match="more than 5 bytes"):
        store(s3).read("s3://bucket/key", max_bytes=5)
    assert s3.stream.closed


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
        store(s3).read("s3://bucket/key", max_bytes=5)
    with pytest.raises(expected[1]):
        store(s3).write("s3://bucket/key", b"")


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
        store(s3).read(url, max_bytes=5)
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
        store(FakeS3(error=error)).read("s3://bucket/key", max_bytes=5)
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
