"""SQS: a body that can't be read must not stop the worker.

A file of its own, because kombu's SQS transport imports boto3.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import SQS

from forwarder.brokers.stopping import StopsAtOnce


class GuardedChannel(SQS.Channel):
    """kombu's channel, but a body that is no envelope becomes an empty one."""

    def _message_to_python(self, message: Any, queue_name: str, q_url: str) -> Any:
        try:
            return super()._message_to_python(message, queue_name, q_url)  # type: ignore[misc]
        except Exception:  # noqa: BLE001 - the consumer refuses it
            return self._envelope_payload({}, "", message, q_url)  # type: ignore[attr-defined]


class SQSTransport(StopsAtOnce, SQS.Transport):  # type: ignore[misc]  # the stubs disagree
    """kombu's SQS transport with the guarded channel."""

    Channel = GuardedChannel
