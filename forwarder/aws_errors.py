"""AWS's errors, as far as more than one room has to know them: their names in logs and results."""

from __future__ import annotations


class NoClientError(Exception):
    """There is no client with valid credentials, and building one failed.

    The message names the service; the cause of the last failure is chained.
    ``retry_in_s`` is how long no new build is tried; ``lasting`` says that
    builds have failed for longer than a record should wait.
    """

    def __init__(self, message: str, *, retry_in_s: float = 0.0, lasting: bool = False) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s
        self.lasting = lasting


def error_code(error: BaseException) -> str | None:
    """Return AWS's own word for a botocore ClientError ("AccessDenied"), None for any other error."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = response.get("Error", {}).get("Code")
    return code if isinstance(code, str) and code else None


def no_such_queue(error: BaseException) -> bool:
    """Return whether SQS says that the queue does not exist."""
    # "AWS.SimpleQueueService.NonExistentQueue", or the name of its shape without the prefix.
    return (error_code(error) or "").rpartition(".")[2] in ("NonExistentQueue", "QueueDoesNotExist")


def describe(error: BaseException) -> str:
    """Return AWS's own word for the error, or else the error's class, and nothing else.

    AWS's messages name accounts, roles and request parameters, which belong in
    neither logs nor results.
    """
    return error_code(error) or type(error).__name__
