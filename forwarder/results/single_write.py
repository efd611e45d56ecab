"""What both result backends share: one write per state, no read before it, errors with codes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from celery import states
from celery._state import get_current_task
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import CeleryError, Reject
from kombu.exceptions import EncodeError
from kombu.utils.json import JSONEncoder

from forwarder.aws_errors import describe
from forwarder.forwarding.errors import InternalError, InvalidResponse, ResultTooLarge, as_forwarder_error
from forwarder.forwarding.ports import Stored
from forwarder.forwarding.record import step
from forwarder.results.patience import Patience

log = logging.getLogger(__name__)

#: Of the key beside a task's result: who may read results may read it, and it lives as long as they do.
PARDONS_SUFFIX = "-pardons"

#: The task id under which nothing is ever stored.
LOOK_ID = "forwarder-look"

#: What kombu's "json" makes anew for each result.
_ENCODER = JSONEncoder()

T = TypeVar("T")


class SingleWriteBackend(KeyValueStoreBackend):
    """A key-value backend that stores what it is given, in one write.

    Celery's own ``_store_result`` reads the stored value first, so as not to
    overwrite a SUCCESS after a network partition: a round trip per state. Here
    only the delivery that runs a task writes its result, and it does so before
    the ack. See ``docs/decisions/0002-results-are-written-once.md``.

    While the store is away a running task waits for it, as long as the app's
    ``result_backend_transport_options["patience"]`` says. What is called outside
    of a task, in the worker's main loop say, never waits.
    """

    #: Largest value in bytes that the store takes.
    value_bytes_max: int
    #: Every task looks for its outcome before it asks, because a write replaces what is there.
    looks_first = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = self.app.conf.result_backend_transport_options  # type: ignore[attr-defined]
        self._patience: Patience = options.get("patience") or Patience(bound_s=0.0)

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a state; the traceback is dropped, it is for the worker's log.

        Blocks for one round trip, in a running task as long as the store is away,
        within the bound. Past it raises Reject, which sends the message back; where
        there is no message, what the store's client raises. Raises Reject too where
        another delivery's outcome stays: the next one finds it.
        """
        with step("store", f"write {state}"):
            # Not by way of Celery's own, whose tries (``result_backend_always_retry``) know no bound.
            return self._store_result(task_id, self.encode_result(result, state), state, request=request)

    def encode(self, data: Any) -> str:  # type: ignore[override]  # the stubs say bytes, of a text
        """Return the JSON text, the same as Celery's. Raises kombu's EncodeError for what JSON can't say."""
        try:
            return _ENCODER.encode(data)
        except Exception as error:  # noqa: BLE001 - as kombu does
            raise EncodeError(type(error).__name__) from None  # its text may quote the value

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        """Return the failure as Celery stores it, with the error object under ``custom``.

        With the serializer "pickle", by which Celery asks for an exception to raise
        or log, a ForwarderError.
        """
        if isinstance(exc, CeleryError):  # a revoke or a retry: Celery's own words
            return super().prepare_exception(exc, serializer)
        error = as_forwarder_error(exc)
        if serializer == "pickle":
            return error
        return {
            "exc_type": type(error).__name__,
            "exc_message": [str(error)],
            "exc_module": type(error).__module__,
            "custom": error.to_custom(),
        }

    def find(self, task_id: str) -> Stored | None:
        """Return the outcome stored under the id, None when there is none yet.

        Blocks and raises as ``store_result`` does, for one read.
        """
        key = self.get_key_for_task(task_id)
        with step("store", "look"):
            value = self._insist(lambda: self.get(key), task_id, has_message=True)
        return self._read(value, task_id) if value else None

    def _read(self, value: Any, task_id: str) -> Stored | None:
        """Return the outcome that a stored text tells, None where it tells none."""
        try:
            return _stored(self.decode(value))
        except Exception as error:  # noqa: BLE001 - whoever wrote it, it is no outcome
            log.warning("stored_result_unreadable task_id=%s error=%s", task_id, type(error).__name__)
            return None

    def look(self) -> None:
        """Ask the store for what every task needs of it; nothing is changed.

        Blocks for one round trip, and raises what the store's client raises.
        """
        self.get(self.get_key_for_task(LOOK_ID))

    def pardon(self, task_id: str) -> None:
        """Note one more delivery that was not the task's fault. Blocks for a read and a write; raises theirs.

        Not in one step: a lease has one loser, and a note that is lost only lets a delivery count.
        """
        key = self.get_key_for_task(task_id + PARDONS_SUFFIX)
        noted = _number(self.get(key))
        if noted is not None:  # else it is the result of a task that has the key for its id
            self.set(key, str(noted + 1))

    def pardons(self, task_id: str) -> int:
        """Return how many deliveries were not the task's fault. Blocks and raises as ``find`` does.

        0 where that can't be read for a reason that may last: it must not keep a poisonous task going round.
        """
        with step("store", "pardons"):
            return self._insist(lambda: self._read_pardons(task_id), task_id, has_message=True)

    def _read_pardons(self, task_id: str) -> int:
        try:
            return _number(self.get(self.get_key_for_task(task_id + PARDONS_SUFFIX))) or 0
        except Exception as error:
            if self.exception_safe_to_retry(error):
                raise
            log.warning("pardons_unreadable task_id=%s error=%s", task_id, describe(error))
            return 0

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        meta = self._get_result_meta(result, state, traceback, request)
        meta["task_id"] = task_id
        try:
            value = self.encode(meta)
        except EncodeError:
            raise TooDeepToStore("the response is nested too deeply to be stored") from None
        if len(value) > self.value_bytes_max:  # Celery's JSON is ASCII
            raise TooLargeToStore(
                f"the result of {len(value)} bytes passes the store's limit of {self.value_bytes_max}"
            )
        written = self._insist(
            lambda: self._write(task_id, value, state), task_id, has_message=request is not None
        )
        if not written:
            log.info("outcome_not_stored task_id=%s: another delivery's stays", task_id)
            raise Reject("already_committed", requeue=True)
        return result

    # Celery looks into its configuration three times for each, which costs more than all the
    # rest of it: for the time zone, which is always UTC here, and for the extended form, which
    # would store the payload. A test compares what both make.
    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, **_: Any
    ) -> dict[str, Any]:
        """Return a state as Celery stores it."""
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": datetime.now(UTC).isoformat() if state in self.READY_STATES else None,
        }
        if group := getattr(request, "group", None):
            meta["group_id"] = group
        if parent_id := getattr(request, "parent_id", None):
            meta["parent_id"] = parent_id
        return meta

    def _write(self, task_id: str, value: str, state: str) -> bool:
        """Write a state; return False where another delivery's outcome was there, and stays."""
        key = self.get_key_for_task(task_id)
        self._set_with_state(key, value, state)  # type: ignore[attr-defined]
        return True

    def _insist(self, step: Callable[[], T], task_id: str, *, has_message: bool) -> T:
        """Do one operation of the store: in a running task until it works or the bound has passed."""
        running = get_current_task() is not None
        try:
            return self._patience.insist(step, task_id=task_id) if running else step()
        except Exception:
            if running or has_message:
                # Not chained: the clients' texts name hosts and keys, and Celery logs the whole chain.
                raise Reject("result_store_unavailable", requeue=True) from None
            raise


def _number(value: Any) -> int | None:
    """Read a stored number, 0 where nothing is stored; None for whatever is none."""
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return None


def _stored(meta: Any) -> Stored | None:
    """Read a stored state, ours or a stock worker's."""
    state = meta["status"]
    if state == states.SUCCESS:
        return Stored(state="SUCCESS", response=meta["result"])
    if state == states.FAILURE:
        error = _error_object(meta["result"])
        return Stored(state="FAILURE", response=error, code=error["code"])
    return Stored(state="REVOKED") if state == states.REVOKED else None


def _error_object(result: Any) -> dict[str, str]:
    """Return the error object of a stored failure; a stock worker's has none."""
    stranger = InternalError("failed in another worker").to_dict()
    if isinstance(result, dict) and isinstance(result.get("custom"), str):
        return stranger | dict(json.loads(result["custom"]))
    return stranger


# Celery makes the task's failure of an EncodeError that comes out of the store;
# of anything else it makes trouble with the store.


class TooLargeToStore(ResultTooLarge, EncodeError):
    """The encoded result passes the store's limit."""


class TooDeepToStore(InvalidResponse, EncodeError):
    """The response was read, but with what is wrapped around it it is nested too deeply to be written."""
