"""An SQS message as it comes over the wire: what it tells, and copies of it.

What forwarder adds to a message stands in SQS's message attributes, as it
stands in the headers on RabbitMQ: the body stays as the producer wrote it,
whether it can be read or not.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any

from forwarder.brokers import dead_letters
from forwarder.brokers.dead_letters import DEATH_HEADER, DELIVERIES_HEADER

RawMessage = Mapping[str, Any]

#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
ATTRIBUTES_MAX = 10


def queue_name(url_or_arn: str) -> str:
    """Return the queue's name at the end of its URL or ARN."""
    return url_or_arn.rstrip("/").replace(":", "/").rpartition("/")[2]


def dead_name(name: str) -> str:
    """Return the dead letter queue of a queue without a redrive policy. SQS allows no dots."""
    if name.endswith(".fifo"):
        return name.removesuffix(".fifo") + "-dead.fifo"
    return f"{name}-dead"


def told(raw: RawMessage, name: str) -> Any:
    """Return what an attribute of ours says (it holds JSON), None where there is none to be read."""
    value = raw.get("MessageAttributes", {}).get(name, {}).get("StringValue")
    try:
        return None if value is None else json.loads(value)
    except ValueError:
        return None


def earlier_deliveries(raw: RawMessage) -> int:
    """Return the deliveries before this copy was sent."""
    return dead_letters.earlier_deliveries({DELIVERIES_HEADER: told(raw, DELIVERIES_HEADER)})


def copy_of(raw: RawMessage, url: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what sends a message again to ``url``: the same body, its attributes changed (None: removed)."""
    attributes = {name: _sendable(value) for name, value in raw.get("MessageAttributes", {}).items()}
    for name, value in changes.items():
        attributes.pop(name, None)
        if value is not None:
            attributes = dict(list(attributes.items())[: ATTRIBUTES_MAX - 1])
            attributes[name] = {"DataType": "String", "StringValue": json.dumps(value)}
    copy: dict[str, Any] = {"MessageBody": raw["Body"], "MessageAttributes": attributes}
    if group := raw.get("Attributes", {}).get("MessageGroupId"):
        copy["MessageGroupId"] = group
    if url.endswith(".fifo"):
        copy["MessageDeduplicationId"] = str(uuid.uuid4())
    return copy


def _sendable(attribute: Mapping[str, Any]) -> dict[str, Any]:
    """Return a received attribute without the empty lists that SQS answers with but does not take."""
    return {name: attribute[name] for name in ("DataType", "StringValue", "BinaryValue") if name in attribute}


def open_message(raw: RawMessage) -> tuple[Mapping[str, Any], str]:
    """Return an SQS message's Celery headers, the reason of its death among them, and its body as text."""
    headers, body = _open_envelope(raw["Body"])
    death = told(raw, DEATH_HEADER)
    return ({**headers, DEATH_HEADER: death} if death is not None else headers), body


def _open_envelope(text: str) -> tuple[Mapping[str, Any], str]:
    try:
        envelope = json.loads(
            text if text.lstrip().startswith("{") else base64.b64decode(text, validate=True)
        )
        headers, body = envelope["headers"], envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body).decode(errors="replace")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, text
    return (headers if isinstance(headers, dict) else {}), str(body)
