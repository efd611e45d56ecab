"""Bodies by reference: objects in S3, read piece by piece and written whole."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from forwarder.aws_errors import describe
from forwarder.forwarding.errors import (
    ForwarderError,
    InputUnavailable,
    InvalidPayload,
    OutputUnavailable,
    is_shortage,
)
from forwarder.forwarding.ports import StagedBody

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; upper case and
#: underscores stand in old buckets.
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
KEY_BYTES_MAX = 1024

#: Of a file that is written; botocore would read a megabyte at a time, and copy it twice.
PIECE_BYTES = 64 * 1024

_UNREADABLE = "the object that 'url' names could not be read"


class S3ObjectStore:
    """Reads and writes ``s3://bucket/key`` through the process's shared client.

    ``client`` returns that client, and is asked at each call.
    """

    def __init__(self, *, client: Callable[[], Any]) -> None:
        self._client = client

    def open(self, url: str, *, after_bytes: int = 0, tag: str | None = None) -> S3Object:
        """Open the object behind its first so many bytes, and only the version that has the tag (its ETag).

        Blocks until S3 has answered. Raises InvalidPayload when the URL names no
        object that could exist, InputUnavailable when it is missing, may not be
        read, has changed, or S3 can't be reached.
        """
        bucket, key = _split(url)
        conditions = {} if tag is None else {"IfMatch": tag}
        if after_bytes:
            conditions["Range"] = f"bytes={after_bytes}-"
        with _translated(InputUnavailable, _UNREADABLE):
            answer = self._client().get_object(Bucket=bucket, Key=key, **conditions)
        if "ContentLength" not in answer:  # the answer broke off in its headers, which nobody else notices
            answer["Body"].close()
            raise InputUnavailable(_UNREADABLE, "no length", again=True)
        return S3Object(answer)

    def write(self, url: str, body: bytes | StagedBody) -> None:
        """Store the bytes, or the file's, with a checksum that S3 verifies. Blocks.

        Raises InvalidPayload when the URL names no object that could exist,
        OutputUnavailable when S3 refuses the object or can't be reached.
        """
        bucket, key = _split(url)
        with _translated(OutputUnavailable, "the response could not be written to 'destination_path'"):
            put = partial(self._client().put_object, Bucket=bucket, Key=key, ChecksumAlgorithm="CRC32")
            if isinstance(body, bytes):
                put(Body=body)
            else:
                with _InPieces(body.path) as file:
                    put(Body=file)


class S3Object:
    """An object that is being read. Close it: only then is its connection free, or gone."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._stream = answer["Body"]
        #: What follows; and what changes whenever a byte does.
        self.size_bytes: int = answer["ContentLength"]
        self.tag: str | None = answer.get("ETag")

    def read(self, bytes_max: int) -> bytes:
        """Return the next bytes, none at the end. Blocks. Raises InputUnavailable where it broke off."""
        with _translated(partial(InputUnavailable, again=True), _UNREADABLE):
            piece: bytes = self._stream.read(bytes_max)
        return piece

    def close(self) -> None:
        """Close the connection, unless all was read: then the client keeps it. Never raises."""
        with suppress(Exception):
            self._stream.close()


class _InPieces(io.FileIO):
    """A file that gives less than it is asked for, as files may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, PIECE_BYTES))


def _split(url: str) -> tuple[str, str]:
    # Not urlsplit: "?" and "#" are ordinary characters of a key.
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    if scheme.lower() != "s3" or not BUCKET_NAME.fullmatch(bucket):
        raise InvalidPayload("expected s3://bucket/key with a valid bucket name")
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidPayload("expected s3://bucket/key with a key in Unicode") from None
    if not 1 <= key_bytes <= KEY_BYTES_MAX:
        raise InvalidPayload(f"expected s3://bucket/key with a key of 1 to {KEY_BYTES_MAX} bytes")
    return bucket, key


@contextmanager
def _translated(to: Callable[[str, str], ForwarderError], message: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if is_shortage(error):
            raise  # not the task's failure
        # Not chained: Celery and ddtrace send the whole chain of a failed task out, and AWS's
        # messages name accounts, keys and addresses.
        raise to(message, describe(error)) from None
