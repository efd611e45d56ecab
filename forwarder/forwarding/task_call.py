"""Reads Celery's request: the task's call, and what is known about its delivery."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeGuard

from forwarder.forwarding.errors import InvalidPayload
from forwarder.forwarding.forwarder import TaskCall

log = logging.getLogger(__name__)

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


def task_call(request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskCall:
    """Read the task's arguments: payload, arrival time, and what is ignored."""
    ignored = max(0, len(args) - 2) + len(set(kwargs) - {"payload", "arrival_timestamp"})
    if ignored:
        log.warning("arguments_ignored task_id=%s number=%d", request.id, ignored)
    if not args and "payload" not in kwargs:
        raise InvalidPayload("the task has no payload: it is the first positional argument")
    return TaskCall(
        task_id=request.id,
        payload=payload_of(args, kwargs),
        expires=request.expires,
        retries=retries_of(request),
        headers=trace_headers(request),
    )


def retries_of(request: Any) -> int:
    """Return how often the task went back to the queue before; 0 for whatever is not a count."""
    retries = request.retries
    return retries if isinstance(retries, int) and retries > 0 else 0


def arrival_of(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the task's arrival time as its producer wrote it: the second positional argument, or by name."""
    return args[1] if len(args) > 1 else kwargs.get("arrival_timestamp")


def payload_of(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the task's payload: its first positional argument, or the one of that name."""
    return args[0] if args else kwargs.get("payload")


def dead_after(request: Any) -> int:
    """Return after how many deliveries the consumer gave the task up, 0 when it is to be run."""
    number = request.get("forwarder_dead")
    return number if isinstance(number, int) else 0


def is_redelivered(request: Any) -> bool:
    """Return whether this very message was delivered before."""
    return bool((request.delivery_info or {}).get("redelivered"))


def is_ours(header: str) -> bool:
    """Return whether a message header is the worker's own, about one message's deliveries."""
    return header.startswith(("forwarder_", "x-forwarder-"))


def trace_headers(request: Any) -> dict[str, str]:
    """Return the trace context that the message carries, for the inference server.

    Datadog's producers write it into the nested ``headers``, where Celery also puts a
    message's custom ones; OpenTelemetry's write it beside Celery's own. ``request`` is
    Celery's, or its dictionary.
    """
    nested = request.get("headers")
    for source in (nested if isinstance(nested, Mapping) else {}, request):
        found = {name: value for name in TRACE_HEADERS if _is_passable(value := source.get(name))}
        if found:
            return found
    return {}


def _is_passable(value: object) -> TypeGuard[str]:
    """Return whether a header can hold it: what it can't would break the request off."""
    return (
        isinstance(value, str)
        and len(value) <= TRACE_HEADER_CHARS_MAX
        and value.isascii()
        and value.isprintable()
    )
