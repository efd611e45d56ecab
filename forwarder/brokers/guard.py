"""Messages that can't be read must not stop the worker.

kombu turns a queue item into a message before Celery sees it, and an item that
is not a Celery envelope raises there, in the middle of the event loop: the
worker ends (kombu#2421 is one form of it). The channels here hand such an item
on as an envelope without headers, so that it takes the consumer's ordinary way
for messages it refuses.
"""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

from celery.worker import state as worker_state
from kombu.transport import SQS as kombu_sqs  # noqa: N811 - a module
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

log = logging.getLogger(__name__)


class RedisMessage(virtual.Message):
    """A message of a Redis list, readable or not."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
            # kombu reads both when it registers the message as unacked.
            self.delivery_info["exchange"], self.delivery_info["routing_key"]
        except Exception:  # noqa: BLE001 - whatever shape the item has, it is not an envelope
            super().__init__(_empty_envelope(), channel=channel, **kwargs)


class RedisChannel(kombu_redis.Channel):
    """kombu's channel, but an item that isn't JSON is refused instead of raised."""

    Message = RedisMessage

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            log.warning("message_refused code=invalid_message reason=not_json error=%s", type(error).__name__)
            return True


class RedisTransport(kombu_redis.Transport):
    """kombu's Redis transport with the guarded channel."""

    Channel = RedisChannel


class SQSChannel(kombu_sqs.Channel):
    """kombu's channel, but a body that is no envelope becomes an empty one.

    And a worker that was told to stop asks for no more messages: Celery's
    blocking loop runs once more after that, which is one more long poll to wait
    for and ten more messages to take.
    """

    def _receive_message(self, *args: Any, **kwargs: Any) -> Any:
        if worker_state.should_stop is not None:
            return {}
        return super()._receive_message(*args, **kwargs)  # type: ignore[misc]

    def _message_to_python(self, message: Any, queue_name: str, q_url: str) -> Any:
        try:
            return super()._message_to_python(message, queue_name, q_url)  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - likewise
            return self._envelope_payload({}, "", message, q_url)  # type: ignore[attr-defined]


class SQSTransport(kombu_sqs.Transport):
    """kombu's SQS transport with the guarded channel."""

    Channel = SQSChannel


def _empty_envelope() -> dict[str, Any]:
    return {
        "body": "",
        "headers": {},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": ""},
        },
    }
