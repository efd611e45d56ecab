"""Redis: an item that can't be read must not stop the worker.

kombu turns a list item into a message before Celery sees it, and an item that
is not a Celery envelope raises there, in the middle of the event loop: the
worker ends. The channel here hands such an item on as an envelope without
headers, so that it takes the consumer's ordinary way for messages it refuses.
"""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

from kombu.transport import redis, virtual

from forwarder.brokers.stopping import StopsAtOnce

log = logging.getLogger(__name__)


class GuardedMessage(virtual.Message):
    """A message of a Redis list, readable or not."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
            # kombu reads both when it registers the message as unacked.
            self.delivery_info["exchange"], self.delivery_info["routing_key"]
        except Exception:  # noqa: BLE001 - whatever shape the item has, it is not an envelope
            super().__init__(_empty_envelope(), channel=channel, **kwargs)


class GuardedChannel(redis.Channel):
    """kombu's channel, but an item that isn't JSON is refused instead of raised."""

    Message = GuardedMessage

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            log.warning("message_refused code=invalid_message reason=not_json error=%s", type(error).__name__)
            return True


class RedisTransport(StopsAtOnce, redis.Transport):  # type: ignore[misc]  # the stubs disagree
    """kombu's Redis transport with the guarded channel."""

    Channel = GuardedChannel


def _empty_envelope() -> dict[str, Any]:
    return {
        "body": "",
        "headers": {},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": ""},
        },
    }
