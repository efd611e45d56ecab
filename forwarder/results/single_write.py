"""What both result backends share: one write per state, no read before it, errors with codes."""

from __future__ import annotations

from typing import Any, cast

from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import CeleryError
from kombu.exceptions import EncodeError

from forwarder.forwarding.errors import InvalidResponse, ResultTooLarge, as_forwarder_error


class SingleWriteBackend(KeyValueStoreBackend):
    """A key-value backend that stores what it is given, in one write.

    Celery's own ``_store_result`` reads the stored value first, so as not to
    overwrite a SUCCESS after a network partition: a round trip per state. Here
    only the delivery that runs a task writes its result, and it does so before
    the ack. See ``docs/decisions/0002-results-are-written-once.md``.
    """

    #: Largest value in bytes that the store takes.
    value_bytes_max: int

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a state; the traceback is dropped, it is for the worker's log.

        Blocks for one round trip. Raises what the store's client raises.
        """
        return super().store_result(task_id, result, state, traceback=None, request=request, **kwargs)

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> dict[str, Any]:
        """Return the failure as Celery stores it, with the error object under ``custom``."""
        if isinstance(exc, CeleryError):  # a revoke or a retry: Celery's own words
            return cast(dict[str, Any], super().prepare_exception(exc, serializer))
        error = as_forwarder_error(exc)
        return {
            "exc_type": type(error).__name__,
            "exc_message": [str(error)],
            "exc_module": type(error).__module__,
            "custom": error.to_custom(),
        }

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        meta = self._get_result_meta(  # type: ignore[attr-defined]
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = task_id
        try:
            value = cast(str, self.encode(meta))
        except EncodeError:  # kombu's, whose text may quote the response
            raise TooDeepToStore("the response is nested too deeply to be stored") from None
        if len(value) > self.value_bytes_max:  # Celery's JSON is ASCII
            raise TooLargeToStore(
                f"the result of {len(value)} bytes passes the store's limit of {self.value_bytes_max}"
            )
        self._set_with_state(self.get_key_for_task(task_id), value, state)  # type: ignore[attr-defined]
        return result


# Celery makes the task's failure of an EncodeError that comes out of the store;
# of anything else it makes trouble with the store.


class TooLargeToStore(ResultTooLarge, EncodeError):
    """The encoded result passes the store's limit."""


class TooDeepToStore(InvalidResponse, EncodeError):
    """The response was read, but with what is wrapped around it it is nested too deeply to be written."""
