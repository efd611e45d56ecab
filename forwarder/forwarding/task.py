"""Celery's side of a task: message in, use case, result out, hooks after the commit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, cast

from celery import Signature, Task
from celery.exceptions import Ignore, Reject
from celery.states import STARTED

from forwarder.forwarding.commit import find_committed, must_look
from forwarder.forwarding.errors import (
    SHORTAGE,
    DeadLettered,
    ForwarderError,
    as_forwarder_error,
    is_shortage,
)
from forwarder.forwarding.forwarder import Forwarder, GoBack
from forwarder.forwarding.ports import PARDONS_MAX, Commits, Completion, Metrics, Pardons
from forwarder.forwarding.record import CURRENT, TaskRecord, Tracing
from forwarder.forwarding.task_call import (
    arrival_of,
    dead_after,
    is_ours,
    is_redelivered,
    payload_of,
    retries_of,
    task_call,
)
from forwarder.forwarding.task_scope import TaskScope

log = logging.getLogger(__name__)

#: The names under which producers send the one task: ours and the ancestor's.
TASK_NAMES = (
    "forwarder.forward",
    "ml_serve.celery_service.exec_func",
    "hosted_model_inference.inference.async_inference.tasks.predict",
)


class HookRunner(Protocol):
    """Runs every hook; never raises."""

    def run(self, completion: Completion) -> None:
        """Run the hooks for one stored result. Blocks until they are done."""


class Parts(Protocol):
    """What a process needs to run tasks; built once per process, after the fork."""

    @property
    def forwarder(self) -> Forwarder: ...
    @property
    def hooks(self) -> HookRunner: ...
    @property
    def metrics(self) -> Metrics: ...


class ForwardTask(Task[..., Any]):
    """The one task, registered under each of its names."""

    Request = "forwarder.brokers.request:ForwardRequest"
    # Logged in one line as an expected outcome, without a traceback.
    throws = (ForwarderError,)
    # Celery would put the response's repr into its log and its events.
    resultrepr_maxsize = 0
    # Here and not left to the app's configuration: Celery copies that into the class, once.
    acks_late = True
    acks_on_failure_or_timeout = True  # a failure is stored like any result, and done
    reject_on_worker_lost = True
    ignore_result = False
    # Celery would store STARTED before the task could look for its result, and over it.
    track_started = False
    serializer = "json"
    _scope: TaskScope | None = None

    def __init__(
        self,
        *,
        name: str,
        parts: Callable[[], Parts],
        track_started: bool,
        max_deliveries: int,
        visibility_timeout_s: float,
        tracing: Tracing | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.stores_started = track_started
        self._parts = parts
        self._max_deliveries = max_deliveries
        self._visibility_timeout_s = visibility_timeout_s
        self._tracing = tracing
        self._monotonic = monotonic

    # Celery builds a task's tracer in several places, and keeps it under this name.
    @property
    def __trace__(self) -> TaskScope | None:
        """Return the tracer that Celery calls for each task, None before it has built one."""
        return self._scope

    @__trace__.setter
    def __trace__(self, tracer: Callable[..., Any]) -> None:
        self._scope = TaskScope(tracer, tracing=self._tracing, monotonic=self._monotonic)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Forward one task, unless its result is there already.

        Raises ForwarderError for a failure, Celery's own for the rest.
        """
        request = self.request
        record = _record()
        try:
            record.wait_s = self._parts().forwarder.waited_s(arrival_of(args, kwargs))
            self._set_off_pardons(request)
            if must_look(cast(Commits, self.backend), request):
                self._end_if_committed(args, kwargs)
            if dead := dead_after(request):
                raise DeadLettered(f"delivered {dead} times without an outcome")
            if self.stores_started and not request.ignore_result:
                meta = {"pid": os.getpid(), "hostname": request.hostname}
                self.backend.store_result(str(request.id), meta, STARTED, request=request)
            result = self._forward(request, args, kwargs)
            if record.run_s >= self._visibility_timeout_s:
                # Long enough for a lease to have ended without our knowledge: whose peer
                # has committed meanwhile must not be told anything else, nor twice.
                self._end_if_committed(args, kwargs)
            return result
        except (ForwarderError, Ignore, Reject):
            raise
        except Exception as error:  # noqa: BLE001 - a bug ends one task, not its slot
            if is_shortage(error):
                raise Reject(SHORTAGE, requeue=True) from None
            # The text of a foreign exception may quote the payload: its class and
            # the frame are enough to find the bug.
            log.error("task_bug task_id=%s error=%s at=%s", request.id, type(error).__name__, _where(error))
            raise as_forwarder_error(error) from None

    def _forward(self, request: Any, args: Any, kwargs: Any) -> Any:
        try:
            return self._parts().forwarder.forward(task_call(request, args, kwargs))
        except ForwarderError:
            # Another delivery may have succeeded meanwhile; its result stays.
            self._end_if_committed(args, kwargs)
            raise
        except GoBack as back:
            self._end_if_committed(args, kwargs)
            return self._go_back(back.error)

    def _set_off_pardons(self, request: Any) -> None:
        """Take what was not the task's fault out of the number of a task that was delivered too often."""
        if number := dead_after(request):
            pardoned = cast(Pardons, self.backend).pardons(str(request.id))
            number -= min(pardoned, PARDONS_MAX)
            request.update({"forwarder_dead": number if number > self._max_deliveries else 0})

    def _end_if_committed(self, args: Any, kwargs: Any) -> None:
        """Raise Ignore, so that the message is acked, when the task's outcome is in the store.

        On a redelivery its hooks are still owed: nobody knows whether they ran. A
        first delivery is a client's second message with the same id, and owes nothing.
        """
        request = self.request
        task_id = str(request.id)
        stored = find_committed(cast(Commits, self.backend), task_id)
        if stored is None:
            return
        owed = is_redelivered(request) and not dead_after(request) and stored.state != "REVOKED"
        _record().outcome = f"already_{stored.state.lower()}"
        if owed:
            payload, succeeded = payload_of(args, kwargs), stored.state == "SUCCESS"
            self._parts().hooks.run(Completion(task_id, payload, stored.response, succeeded=succeeded))
        raise Ignore

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Run the hooks. Celery calls this after the result is stored, before the ack."""
        completion = Completion(task_id, payload_of(args, kwargs), retval, succeeded=True)
        self._finish("success", completion)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Run the hooks for a failed task, likewise after the store."""
        error = as_forwarder_error(exc)
        completion = Completion(task_id, payload_of(args, kwargs), error.to_dict(), succeeded=False)
        _record().error = error
        self._finish(error.code, completion)

    def _finish(self, outcome: str, completion: Completion) -> None:
        parts, request, record = self._parts(), self.request, _record()
        record.outcome = outcome
        queue, total_s = _queue(request), record.total_s
        parts.metrics.count("forwarder_tasks_total", queue=queue, outcome=outcome)
        if total_s is not None:
            parts.metrics.observe("forwarder_task_seconds", total_s, queue=queue)
        if dead_after(request) <= self._max_deliveries + 1:  # past it they may be what the task dies of
            parts.hooks.run(completion)

    def _go_back(self, error: ForwarderError) -> NoReturn:
        """Publish the task again, one retry older, and let the old message be acked.

        Not ``Task.retry``: it rejects the message for good when publishing
        fails, and stores RETRY after publishing, over the result of whoever was
        quicker. Always raises.
        """
        request = self.request
        queue = _queue(request)
        self.backend.mark_as_retry(str(request.id), error, request=request)
        try:
            self._again(queue).apply_async()
        except Exception as failure:  # noqa: BLE001 - the message goes back whatever it was
            log.warning("go_back_failed task_id=%s error=%s", request.id, type(failure).__name__)
            raise Reject(error.code, requeue=True) from None
        self._parts().metrics.count("forwarder_tasks_total", queue=queue, outcome="requeued")
        raise Ignore

    def _again(self, queue: str) -> Signature[Any]:
        """Return the task as it is published again.

        Celery would copy the whole delivery info into the new message; on SQS
        that is the received message with its body, and once more at each retry.
        Its own count of deliveries starts anew: the server said "later", and how
        often it may is what ``max_retries`` bounds.
        """
        request = self.request
        headers = {name: value for name, value in (request.headers or {}).items() if not is_ours(name)}
        return self.signature_from_request(
            request,
            retries=retries_of(request) + 1,
            # Not by its name: remote control may have added it after this child was forked.
            queue=self.app.conf.forwarder_make_queue(queue),
            headers=headers,
            priority=(request.delivery_info or {}).get("priority"),
            # The repr of the arguments travels in the headers, for other people's logs.
            argsrepr="(...)",
            kwargsrepr="{...}",
        )


def _record() -> TaskRecord:
    """Return the record of the task that runs: Celery's tracer is called within one."""
    record = CURRENT.get()
    if record is None:
        raise RuntimeError("called without TaskScope")
    return record


def _queue(request: Any) -> str:
    """Return which of the worker's queues the message came from.

    Not the routing key, which on Redis and SQS is whatever the producer wrote:
    published by that, a task could end where nobody reads.
    """
    return str(request.get("forwarder_queue"))


def _where(error: BaseException) -> str:
    """Return the innermost frame as ``file:line``."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "unknown"
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
