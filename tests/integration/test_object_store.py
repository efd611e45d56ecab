"""Bodies by reference against a real S3 server."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from forwarder.cloud.objects import S3ObjectStore
from forwarder.cloud.per_process import PerProcess
from forwarder.cloud.session import AwsSession, s3_client
from forwarder.forwarding.errors import InputUnavailable, OutputUnavailable
from forwarder.forwarding.ports import StagedBody
from forwarder.testing.aws_resources import client, create_bucket

CLOUDS = ["moto", "localstack"]


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    cloud = request.getfixturevalue(request.param)
    for name, value in cloud.env.items():
        monkeypatch.setenv(name, value)
    return cloud


@pytest.fixture
def bucket(cloud: Any) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    create_bucket(cloud.env, name)
    return name


@pytest.fixture
def store() -> S3ObjectStore:
    return S3ObjectStore(client=PerProcess(lambda: s3_client(AwsSession(), max_pool_connections=2)).get)


@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_what_was_written_is_read_back_and_has_a_checksum(
    cloud: Any, bucket: str, store: S3ObjectStore
) -> None:
    body = bytes(range(256)) * 1000
    store.write(f"s3://{bucket}/a/key with?signs#é", body)
    opened = store.open(f"s3://{bucket}/a/key with?signs#é")
    assert opened.size_bytes == len(body)
    assert opened.read(len(body)) == body
    assert opened.read(1) == b""
    head = client(cloud.env, "s3").head_object(
        Bucket=bucket, Key="a/key with?signs#é", ChecksumMode="ENABLED"
    )
    assert head["ChecksumCRC32"]


@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_a_file_is_written_and_gone_on_with_behind_what_was_read(
    cloud: Any, bucket: str, store: S3ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(body := bytes(range(256)) * 1000)
    store.write(f"s3://{bucket}/key", StagedBody(path=path, size_bytes=len(body)))
    first = store.open(f"s3://{bucket}/key")
    beginning = first.read(1000)
    first.close()
    second = store.open(f"s3://{bucket}/key", after_bytes=1000, tag=first.tag)
    assert second.size_bytes == len(body) - 1000
    assert beginning + second.read(len(body)) == body
    store.write(f"s3://{bucket}/key", b"another")
    with pytest.raises(InputUnavailable) as changed:
        store.open(f"s3://{bucket}/key", after_bytes=1000, tag=first.tag)
    assert changed.value.metadata == "PreconditionFailed"


@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_what_is_not_there_is_named_by_awss_word(cloud: Any, bucket: str, store: S3ObjectStore) -> None:
    with pytest.raises(InputUnavailable) as no_key:
        store.open(f"s3://{bucket}/none")
    with pytest.raises(InputUnavailable) as no_bucket:
        store.open(f"s3://{bucket}-none/key")
    with pytest.raises(OutputUnavailable) as not_written:
        store.write(f"s3://{bucket}-none/key", b"body")
    words = [raised.value.metadata for raised in (no_key, no_bucket, not_written)]
    assert words == ["NoSuchKey", "NoSuchBucket", "NoSuchBucket"]
