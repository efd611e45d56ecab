"""Messages as the receiver and the consumer take them, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import EndpointConnectionError

from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.sqs.leases import SqsLeases
from tests.unit.brokers.sqs.fake import FakeSqs, message, raw_message

AWAY = EndpointConnectionError(endpoint_url="https://sqs")
DEATH = Death(
    code="dead_lettered", error="too often", queue="q", deliveries=6, at="2026-01-01T00:00:00+00:00"
)


def take(leases: SqsLeases, sqs: FakeSqs, *raws: dict[str, Any]) -> list[Delivery]:
    """Fetch and open messages as the receiver and the consumer do."""
    taken: list[Delivery] = []
    for start in range(0, len(raws), 10):
        sqs.inbox = list(raws[start : start + 10])
        taken += [leases.receive(message(dict(raw))) for raw in leases.fetch(10, lambda: True)]
    return taken


def many(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [raw_message(f"h{n}", **changes) for n in range(number)]


def text(value: Any) -> dict[str, str]:
    return {"DataType": "String", "StringValue": json.dumps(value)}


def earlier(number: Any) -> dict[str, Any]:
    return {"x-forwarder-deliveries": text(number)}


def hand_backs(sqs: FakeSqs) -> Sequence[str]:
    return [entry["MessageBody"] for call in sqs.named("send_message_batch") for entry in call["Entries"]]
