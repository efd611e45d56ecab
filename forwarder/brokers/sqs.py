"""SQS: a body that can't be read must not stop the worker, and a stopping worker takes no more.

A file of its own, because kombu's SQS transport imports boto3.
"""

from __future__ import annotations

from typing import Any

from celery.worker import state
from kombu.transport import SQS


class GuardedChannel(SQS.Channel):
    """kombu's channel, but a body that is no envelope becomes an empty one.

    And a worker that was told to stop asks for no more messages: Celery's
    blocking loop runs once more after that, which is one more long poll to wait
    for and ten more messages to take.
    """

    def _receive_message(self, *args: Any, **kwargs: Any) -> Any:
        if state.should_stop is not None:
            return {}
        return super()._receive_message(*args, **kwargs)  # type: ignore[misc]

    def _message_to_python(self, message: Any, queue_name: str, q_url: str) -> Any:
        try:
            return super()._message_to_python(message, queue_name, q_url)  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - the consumer refuses it
            return self._envelope_payload({}, "", message, q_url)  # type: ignore[attr-defined]


class SQSTransport(SQS.Transport):
    """kombu's SQS transport with the guarded channel."""

    Channel = GuardedChannel
