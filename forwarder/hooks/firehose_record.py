"""The record that the logging hook sends for a task (contract, section 5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from forwarder.forwarding.ports import Completion
from forwarder.hooks.bodies import NOT_JSON, to_json, with_task_id
from forwarder.settings.model import EndpointIdentity

#: 1,000 KiB before base64: https://docs.aws.amazon.com/firehose/latest/dev/limits.html
RECORD_BYTES_MAX = 1000 * 1024


def build_record(completion: Completion, *, endpoint: EndpointIdentity, emitted_at: float) -> bytes:
    """Return the record: one line of UTF-8 JSON, with its newline.

    ``emitted_at`` is in seconds since the epoch. A body that can't be sent is
    replaced by ``{"omitted": why, "omitted_bytes": n}``, so that every task has
    its record. Why is ``record_too_large``, and n the length of the body's own
    JSON (the larger body goes first, the other one only where it must), or
    ``not_json``, and n null.
    """
    task_id = completion.task_id
    record = {
        "EMITTED_AT": datetime.fromtimestamp(emitted_at, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "ENDPOINT_ID": endpoint.id,
        "ENDPOINT_NAME": endpoint.name,
        "ENDPOINT_TYPE": endpoint.type,
        "BUNDLE_ID": endpoint.bundle_id,
        "LABELS": dict(endpoint.labels),
        "TASK_ID": task_id,
    }
    request, response = _body(completion.payload), _body(with_task_id(completion.response, task_id), task_id)
    line = _line(record, request, response)
    if len(line) <= RECORD_BYTES_MAX:
        return line
    small_request = _omitted("record_too_large", len(request))
    small_response = _omitted("record_too_large", len(response), task_id)
    if len(request) >= len(response):
        line = _line(record, small_request, response)
    else:
        line = _line(record, request, small_response)
    if len(line) <= RECORD_BYTES_MAX:
        return line
    return _line(record, small_request, small_response)


def _line(record: dict[str, Any], request: bytes, response: bytes) -> bytes:
    # The response is spliced in: it may be large, and is JSON already.
    rest = to_json({**record, "REQUEST_BODY": request.decode()})
    return rest.removesuffix(b"}") + b', "RESPONSE_BODY": ' + response + b"}\n"


def _body(value: Any, task_id: str | None = None) -> bytes:
    try:
        return to_json(value)
    except NOT_JSON:
        return _omitted("not_json", None, task_id)


def _omitted(why: str, size_bytes: int | None, task_id: str | None = None) -> bytes:
    marker: dict[str, Any] = {"omitted": why, "omitted_bytes": size_bytes}
    return to_json(marker if task_id is None else with_task_id(marker, task_id))
