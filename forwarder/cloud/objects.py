"""Bodies by reference: objects in S3, read and written whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from forwarder.aws_errors import describe
from forwarder.forwarding.errors import (
    ForwarderError,
    InputUnavailable,
    InvalidPayload,
    OutputUnavailable,
    is_shortage,
)

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; upper case and
#: underscores stand in old buckets.
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
KEY_BYTES_MAX = 1024


class S3ObjectStore:
    """Reads and writes ``s3://bucket/key`` through the process's shared client.

    ``client`` returns that client, and is asked at each call.
    """

    def __init__(self, *, client: Callable[[], Any]) -> None:
        self._client = client

    def read(self, url: str, *, max_bytes: int) -> bytes:
        """Return the object's bytes. Blocks.

        Raises InvalidPayload when the URL names no object that could exist or
        the object has more than ``max_bytes``, InputUnavailable when it is
        missing, may not be read, or S3 can't be reached.
        """
        bucket, key = _split(url)
        with _translated(InputUnavailable, "the object that 'url' names could not be read"):
            answer = self._client().get_object(Bucket=bucket, Key=key)
            with answer["Body"] as stream:
                if answer["ContentLength"] > max_bytes:
                    # Leaving without reading closes the connection: cheaper than the rest of the object.
                    raise InvalidPayload(f"the object that 'url' names has more than {max_bytes} bytes")
                body: bytes = stream.read()
        return body

    def write(self, url: str, body: bytes) -> None:
        """Store the bytes with a checksum that S3 verifies. Blocks.

        Raises InvalidPayload when the URL names no object that could exist,
        OutputUnavailable when S3 refuses the object or can't be reached.
        """
        bucket, key = _split(url)
        with _translated(OutputUnavailable, "the response could not be written to 'destination_path'"):
            self._client().put_object(Bucket=bucket, Key=key, Body=body, ChecksumAlgorithm="CRC32")


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
def _translated(to: type[ForwarderError], message: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if is_shortage(error):
            raise  # not the task's failure
        # Not chained: Celery and ddtrace send the whole chain of a failed task out, and AWS's
        # messages name accounts, keys and addresses.
        raise to(message, describe(error)) from None
