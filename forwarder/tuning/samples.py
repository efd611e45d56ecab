"""Payloads to measure with: read from lines of JSON, or from messages as they lie in a queue."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from forwarder.forwarding.errors import ForwarderError
from forwarder.forwarding.payload import encode_body, parse_payload
from forwarder.forwarding.task_call import payload_of

#: Bytes of a Celery message that are not its payload: 600 to 900 with stock producers.
ENVELOPE_BYTES = 800


class Unreadable(ValueError):
    """What was given holds no payload; the message says where, and never what."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One payload. ``url`` is None where the body travels in the message, which has ``message_bytes``."""

    text: str = field(repr=False)
    message_bytes: int
    url: str | None

    @property
    def payload(self) -> Any:
        """Return the payload, decoded anew, as a worker does for each task."""
        return json.loads(self.text)


def from_lines(lines: Iterable[str], *, unwrap: bool) -> list[Sample]:
    """Return the payloads of a JSON lines file: an object in each line, empty lines left out.

    Raises Unreadable with the number of the line.
    """
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(json.loads(line), unwrap=unwrap, message_bytes=None))
        except (ValueError, RecursionError):
            raise Unreadable(f"line {number} is not JSON") from None
        except ForwarderError as error:
            raise Unreadable(f"line {number}: {error}") from None
    return samples


def from_messages(items: Iterable[bytes], *, unwrap: bool) -> list[Sample]:
    """Return the payloads of Celery messages as Redis keeps them; what can't be read is left out."""
    samples = []
    for item in items:
        try:
            samples.append(_sample(_payload_in(item), unwrap=unwrap, message_bytes=len(item)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ForwarderError):
            continue  # a worker puts it aside; compressed ones are not looked into
    return samples


def _payload_in(item: bytes) -> Any:
    envelope = json.loads(item)
    body = envelope["body"]
    if envelope["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    args, kwargs, _ = json.loads(body)
    return payload_of(args, kwargs)


def _sample(payload: Any, *, unwrap: bool, message_bytes: int | None) -> Sample:
    """Return the payload as a sample. Raises InvalidPayload and its like where a worker would refuse it."""
    parsed = parse_payload(payload, unwrap=unwrap)
    if parsed.url is None:
        encode_body(parsed.body)
    text = json.dumps(payload)
    # In its message a payload is encoded in base64: four bytes for three.
    return Sample(text, message_bytes or ENVELOPE_BYTES + len(text) * 4 // 3, parsed.url)
