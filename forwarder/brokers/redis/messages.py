"""Items of a Redis list as kombu messages, readable or not.

An item that is no Celery envelope comes as an empty one, so that it takes the
consumer's ordinary way for messages it refuses.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from kombu.transport import virtual
from kombu.utils import json as kombu_json
from kombu.utils.encoding import bytes_to_str

from forwarder.brokers.redis.intake import Taken


class GuardedMessage(virtual.Message):
    """A message of a Redis list, readable or not."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
            # kombu reads both when it registers the message as unacked.
            self.delivery_info["exchange"], self.delivery_info["routing_key"]
        except Exception:  # noqa: BLE001 - whatever shape the item has, it is not an envelope
            super().__init__(_empty_envelope(_tag(payload)), channel=channel, **kwargs)
        if getattr(channel, "book", None) is not None:
            self._raw: Any = None  # serves kombu's way of restoring, which has no part in leases


def envelope_of(one: Taken) -> dict[str, Any]:
    """Return the message of an item, empty where that is no envelope, under its lease."""
    try:
        payload: dict[str, Any] = _loads(bytes_to_str(one.item or b""))
        payload["properties"]["delivery_tag"] = one.lease
        payload["properties"]["delivery_info"]["redelivered"] = one.number > 1
    except Exception:  # noqa: BLE001 - whatever shape the item has, it is not an envelope
        payload = _empty_envelope(one.lease)
        payload["properties"]["item_bytes"] = one.item_bytes
        if one.task_id:
            payload["headers"]["id"] = one.task_id
    return payload


def arrival_of(item: bytes) -> object:
    """Return the arrival time that a waiting task's arguments carry, as it was written; None without one."""
    try:
        envelope = json.loads(item)
        body = envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        args, kwargs, _ = _loads(bytes_to_str(body))
        return args[1] if len(args) > 1 else kwargs.get("arrival_timestamp")
    except Exception:  # noqa: BLE001 - whatever shape the item has, it tells no time
        return None


def _loads(text: str) -> Any:
    """Read JSON as kombu does, which looks at each object for types that it has made of one."""
    return kombu_json.loads(text) if "__type__" in text else json.loads(text)


def _empty_envelope(tag: str) -> dict[str, Any]:
    info = {"exchange": "", "routing_key": ""}
    return {"body": "", "headers": {}, "properties": {"delivery_tag": tag, "delivery_info": info}}


def _tag(payload: Any) -> str:
    try:
        return str(payload["properties"]["delivery_tag"])
    except (TypeError, KeyError):
        return str(uuid.uuid4())
