"""Every error a task can end with, each with the code that its result carries.

The codes are part of the public contract: clients branch on them, so a code is
never renamed and never reused for another meaning.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

#: What a process or its machine has run out of: file descriptors, memory, disk, threads.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN})

#: CPython's words where no thread can be started: a RuntimeError without a number.
NO_THREAD = "can't start new thread"

#: How many errors beneath one are looked at.
BENEATH_MAX = 10

#: Reason of the Reject of a task that could not run for one of these.
SHORTAGE = "worker_shortage"


class ForwarderError(Exception):
    """A task failed for a known reason.

    ``code`` is one word from the documented list. The message and ``metadata``
    are written for the task's sender: they never hold payload text, response
    text or secrets. Constructible from a single string, because Celery rebuilds
    exceptions that way when a result is read.
    """

    code = "internal"

    def __init__(self, message: str, metadata: str = "") -> None:
        super().__init__(message)
        self.metadata = metadata

    def to_dict(self) -> dict[str, str]:
        """Return the error object that results and hook records carry."""
        return {"error": str(self), "error_metadata": self.metadata, "code": self.code}

    def to_custom(self) -> str:
        """Return the JSON string that stands under ``custom`` in a failed result."""
        return json.dumps(self.to_dict())


class InternalError(ForwarderError):
    """A bug in the worker, or something it did not foresee."""


def as_forwarder_error(error: BaseException) -> ForwarderError:
    """Return the error that a result may carry: the text of a foreign one may quote the payload."""
    if isinstance(error, ForwarderError):
        return error
    return InternalError(f"internal error: {type(error).__name__}")


def is_shortage(error: BaseException) -> bool:
    """Return whether an error, or one beneath it, says that the worker, not the task, lacks something.

    Not MemoryError, which a task's own size may be the reason of. Beneath another
    error EAGAIN is none: there it is a socket that was waited for.
    """
    return _lacks(error, SHORTAGES) or any(
        _lacks(each, SHORTAGES - {errno.EAGAIN}) for each in _beneath(error)
    )


def _lacks(error: BaseException, numbers: frozenset[int]) -> bool:
    if isinstance(error, OSError):
        return error.errno in numbers
    return isinstance(error, RuntimeError) and str(error) == NO_THREAD


def _beneath(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error was raised from, as a traceback would show it."""
    for _ in range(BENEATH_MAX):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            return
        yield (error := cause)


class InvalidMessage(ForwarderError):
    """The broker message is not a Celery task message that can be decoded."""

    code = "invalid_message"


class UnknownTask(ForwarderError):
    """The message names a task that this worker does not serve."""

    code = "unknown_task"


class InvalidPayload(ForwarderError):
    """The payload is not what the contract describes; sending it again can't help."""

    code = "invalid_payload"


class PickleRefused(ForwarderError):
    """The payload asks for unpickling, which would run the sender's code."""

    code = "pickle_refused"


class Expired(ForwarderError):
    """The message's ``expires`` passed before the inference server had answered."""

    code = "expired"


class InputUnavailable(ForwarderError):
    """The body that the payload refers to by ``url`` could not be read, ``again`` perhaps later."""

    code = "input_unavailable"

    def __init__(self, message: str, metadata: str = "", again: bool = False) -> None:
        super().__init__(message, metadata)
        self.again = again


class OutputUnavailable(ForwarderError):
    """The response could not be written to the payload's ``destination_path``."""

    code = "output_unavailable"


class InferenceUnreachable(ForwarderError):
    """No connection to the inference server in time, or it broke before the answer was whole."""

    code = "inference_unreachable"


class InferenceBusy(ForwarderError):
    """The inference server answered 429, 503 or 529 at every try."""

    code = "inference_busy"

    def __init__(self, message: str, metadata: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, metadata)
        self.retry_after_s = retry_after_s


class InferenceTimeout(ForwarderError):
    """The inference server did not answer within the read or the total deadline."""

    code = "inference_timeout"


class InvalidResponse(ForwarderError):
    """The inference server answered 2xx with a body that is not JSON."""

    code = "invalid_response"


class EmptyResponse(ForwarderError):
    """The inference server answered 200 with no body."""

    code = "empty_response"


class ResponseTooLarge(ForwarderError):
    """The inference server's answer passes the configured bound."""

    code = "response_too_large"


class ResultTooLarge(ForwarderError):
    """The result can't be stored: it passes the result store's own limit."""

    code = "result_too_large"


class DeadLettered(ForwarderError):
    """The task was delivered too often without an outcome and was put aside."""

    code = "dead_lettered"
