"""Celery's side of a task: message in, use case, result out, hooks after the commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from celery import Signature, Task
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from forwarder.forwarding.errors import ForwarderError, InvalidPayload, as_forwarder_error
from forwarder.forwarding.forwarder import Forwarder, GoBack, TaskCall
from forwarder.forwarding.ports import Completion, Metrics

log = logging.getLogger(__name__)

#: The names under which producers send the one task: ours and the ancestor's.
TASK_NAMES = (
    "forwarder.forward",
    "ml_serve.celery_service.exec_func",
    "hosted_model_inference.inference.async_inference.tasks.predict",
)


#: Trace context of W3C and Datadog, as producers put it into message headers.
TRACE_HEADERS = (
    "traceparent",
    "tracestate",
    "baggage",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-origin",
    "x-datadog-tags",
)
TRACE_HEADER_CHARS_MAX = 8192  # of a baggage string: https://www.w3.org/TR/baggage/


#: Stands for the queue where it can't be told: several are consumed, and the message names none of them.
NO_QUEUE = "unknown"


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


class ForwardRequest(Request):
    """Celery's request, which leaves expiry and time limits to the use case.

    Celery turns an expired task into REVOKED as it is received. Here it ends as
    every task does: a FAILURE with a code, a hook record, a log line; and a task
    that expires while it waits for a busy server is caught too.

    A producer's time limit would end a task in its hooks, after its result was
    stored, and make a failure of it. The worker's own deadlines bound the call.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.time_limits = (None, None)

    def maybe_expire(self) -> None:
        """Never expire here: :meth:`Forwarder.forward` does."""


class ForwardTask(Task[..., Any]):
    """The one task, registered under each of its names."""

    Request = f"{__name__}:ForwardRequest"
    # Logged in one line as an expected outcome, without a traceback.
    throws = (ForwarderError,)
    # Celery would put the response's repr into its log and its events.
    resultrepr_maxsize = 0
    # Here and not left to the app's configuration: Celery copies that into the class, once.
    acks_late = True
    acks_on_failure_or_timeout = True  # a failure is stored like any result, and done
    reject_on_worker_lost = True
    ignore_result = False
    serializer = "json"

    def __init__(self, *, name: str, parts: Callable[[], Parts], track_started: bool) -> None:
        self.name = name
        self.track_started = track_started
        self._parts = parts

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Forward one task. Raises ForwarderError for a failure, Celery's own for the rest."""
        request = self.request
        try:
            return self._parts().forwarder.forward(_call(request, args, kwargs))
        except ForwarderError:
            raise
        except GoBack as back:
            return self._go_back(back.error)
        except Exception as error:  # noqa: BLE001 - a bug ends one task, not its slot
            # The text of a foreign exception may quote the payload: its class and
            # the frame are enough to find the bug.
            log.error("task_bug task_id=%s error=%s at=%s", request.id, type(error).__name__, _where(error))
            raise as_forwarder_error(error) from None

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Run the hooks. Celery calls this after the result is stored, before the ack."""
        self._finish(
            "success", Completion(task_id, _payload(args, kwargs), retval, succeeded=True), args, kwargs
        )

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Run the hooks for a failed task, likewise after the store."""
        error = as_forwarder_error(exc)
        completion = Completion(task_id, _payload(args, kwargs), error.to_dict(), succeeded=False)
        self._finish(error.code, completion, args, kwargs)

    def _finish(self, outcome: str, completion: Completion, args: Any, kwargs: Any) -> None:
        parts = self._parts()
        queue = self._queue()
        total_s = parts.forwarder.waited_s(args[1] if len(args) > 1 else kwargs.get("arrival_timestamp"))
        parts.metrics.count("forwarder_tasks_total", queue=queue, outcome=outcome)
        if total_s is not None:
            parts.metrics.observe("forwarder_task_seconds", total_s, queue=queue)
        log.info(
            "task_done task_id=%s queue=%s outcome=%s retries=%d total_s=%s",
            completion.task_id, queue, outcome, self.request.retries or 0,
            "unknown" if total_s is None else f"{total_s:.3f}",
        )  # fmt: skip
        parts.hooks.run(completion)

    def _go_back(self, error: ForwarderError) -> NoReturn:
        """Publish the task again, one retry older, and let the old message be acked.

        Not ``Task.retry``: it rejects the message for good when publishing
        fails, and stores RETRY after publishing, over the result of whoever was
        quicker. Always raises.
        """
        request = self.request
        queue = self._queue()
        self._parts().metrics.count("forwarder_tasks_total", queue=queue, outcome="requeued")
        if queue == NO_QUEUE:  # published by its own route it could end where nobody reads
            raise Reject(error.code, requeue=True)
        try:
            self.backend.mark_as_retry(str(request.id), error, request=request)
            self._again(queue).apply_async()
        except Exception as failure:  # noqa: BLE001 - the message goes back whatever it was
            log.warning("go_back_failed task_id=%s error=%s", request.id, type(failure).__name__)
            raise Reject(error.code, requeue=True) from None
        raise Ignore

    def _again(self, queue: str) -> Signature[Any]:
        """Return the task as it is published again.

        Celery would copy the whole delivery info into the new message; on SQS
        that is the received message with its body, and once more at each retry.
        """
        request = self.request
        return self.signature_from_request(
            request,
            retries=(request.retries or 0) + 1,
            queue=queue,
            priority=(request.delivery_info or {}).get("priority"),
            # The repr of the arguments travels in the headers, for other people's logs.
            argsrepr="(...)",
            kwargsrepr="{...}",
        )

    def _queue(self) -> str:
        """Return which of the worker's queues the message came from.

        Only AMQP's broker writes the routing key; on Redis and SQS it is whatever
        the producer wrote, so it is believed only where it names a queue of ours.
        """
        queues = self.app.amqp.queues
        name = (self.request.delivery_info or {}).get("routing_key")
        if isinstance(name, str) and name in queues:
            return name
        return str(next(iter(queues))) if len(queues) == 1 else NO_QUEUE


def _call(request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskCall:
    """Read the task's arguments: payload, arrival time, and what is ignored."""
    ignored = max(0, len(args) - 2) + len(set(kwargs) - {"payload", "arrival_timestamp"})
    if ignored:
        log.warning("arguments_ignored task_id=%s number=%d", request.id, ignored)
    if not args and "payload" not in kwargs:
        raise InvalidPayload("the task has no payload: it is the first positional argument")
    return TaskCall(
        task_id=request.id,
        payload=_payload(args, kwargs),
        expires=request.expires,
        retries=request.retries or 0,
        headers=_trace_headers(request),
    )


def _trace_headers(request: Any) -> dict[str, str]:
    """Return the trace context that the message carries, for the inference server."""
    found = {name: request.get(name) for name in TRACE_HEADERS}
    return {
        name: value
        for name, value in found.items()
        # What a header can't hold would break the request off.
        if isinstance(value, str)
        and len(value) <= TRACE_HEADER_CHARS_MAX
        and value.isascii()
        and value.isprintable()
    }


def _payload(args: Any, kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("payload")


def _where(error: BaseException) -> str:
    """Return the innermost frame as ``file:line``."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "unknown"
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
