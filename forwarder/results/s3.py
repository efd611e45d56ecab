"""Results in S3: one PUT with a checksum per state, through one shared client; the first outcome stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from celery import states

from forwarder.aws_errors import error_code
from forwarder.results.single_write import SingleWriteBackend

log = logging.getLogger(__name__)


class S3Backend(SingleWriteBackend):
    """Stores each result as ``<prefix>celery-task-meta-<task id>``, as Celery's S3 backend does.

    The URL is ``s3://bucket/prefix``. The client comes from the app's
    ``result_backend_transport_options["client"]``, a callable that returns this
    process's shared boto3 S3 client. Objects do not expire by themselves: set a
    lifecycle rule on the prefix.

    A GET costs as much CPU as the PUT, so a task that was not seen before does not
    look for an outcome, and S3 takes one only where none is. The option
    ``looks_first`` is for tasks that store STARTED, where always something is.
    """

    #: Largest object of one PUT:
    #: https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
    value_bytes_max = 5 * 1024**3

    def __init__(self, url: str, **kwargs: Any) -> None:
        super().__init__(url=url, **kwargs)
        parts = urlsplit(url)
        self._bucket = parts.netloc
        self._prefix = parts.path.lstrip("/")
        options = self.app.conf.result_backend_transport_options  # type: ignore[attr-defined]
        self._client: Callable[[], Any] = options["client"]
        self.looks_first = bool(options.get("looks_first"))
        self._denied = False

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Return whether S3 was away: it could not be asked, or had trouble itself. Not what it refuses.

        A conflict (409) is no refusal: others wrote at the same moment, the next try finds what they wrote.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(exc, ClientError):
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return bool(status == HTTPStatus.CONFLICT or status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        return isinstance(exc, (OSError, BotoCoreError))

    def get(self, key: str | bytes) -> str | None:
        """Return the stored text, None when there is none. Blocks for one GET; raises botocore's errors.

        Without s3:ListBucket S3 does not tell what is missing from what is denied, and no task could begin.
        """
        client = self._client()
        try:
            response = client.get_object(Bucket=self._bucket, Key=self._path(key))
        except client.exceptions.NoSuchKey:
            response = None
        except Exception as error:
            if error_code(error) == "AccessDenied" and not self._denied:
                self._denied = True  # said once, not at each try of each task
                log.error(
                    "result_read_denied bucket=%s: allow s3:GetObject on its objects and s3:ListBucket on "
                    "the bucket, without which S3 calls a missing result denied",
                    self._bucket,
                )
            raise
        self._denied = False
        return None if response is None else str(response["Body"].read().decode())

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """Store the text. Blocks for one PUT; raises botocore's errors."""
        self._put(key, value)

    def delete(self, key: str | bytes) -> None:
        """Remove the object. Blocks for one DELETE."""
        self._client().delete_object(Bucket=self._bucket, Key=self._path(key))

    def _write(self, task_id: str, value: str, state: str) -> bool:
        if self.looks_first or state not in (states.SUCCESS, states.FAILURE):
            return super()._write(task_id, value, state)
        key = self.get_key_for_task(task_id)
        try:
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
            self._put(key, value, IfNoneMatch="*")
        except Exception as error:
            if error_code(error) != "PreconditionFailed":
                raise
        else:
            return True
        there = self.get(key)
        if there == value:
            return True  # our own, and its answer was lost
        outcome = self._read(there, task_id) if there else None
        if outcome is not None and outcome.is_final:
            return False
        return super()._write(task_id, value, state)

    def _put(self, key: str | bytes, value: str | bytes, **conditions: str) -> None:
        # CRC-32 is what S3 verifies on arrival and what costs the least CPU here.
        self._client().put_object(
            Bucket=self._bucket,
            Key=self._path(key),
            Body=value if isinstance(value, bytes) else value.encode(),
            ContentType="application/json",
            ChecksumAlgorithm="CRC32",
            **conditions,
        )

    def _path(self, key: str | bytes) -> str:
        return self._prefix + (key.decode() if isinstance(key, bytes) else key)
