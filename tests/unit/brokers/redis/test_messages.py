"""What is read out of a message that waits, whatever it is."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from forwarder.brokers.redis.messages import arrival_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def item(args: Any, kwargs: Any = None) -> bytes:
    """Return the envelope of a task as stock Celery puts it onto Redis."""
    app = Celery(broker="memory://", set_as_current=False)
    with app.connection_for_write() as connection:
        app.send_task("forwarder.forward", args=args, kwargs=kwargs, queue="q", connection=connection)
        channel: Any = connection.default_channel
        return json.dumps(channel._get("q")).encode()


@pytest.mark.parametrize("arrival", [1.5, "2026-01-02T00:00:00Z", NOW])
def test_the_arrival_is_the_second_argument_by_place_or_by_name(arrival: object) -> None:
    assert arrival_of(item(({"args": 1}, arrival))) == arrival
    assert arrival_of(item(({"args": 1},), {"arrival_timestamp": arrival})) == arrival


@pytest.mark.parametrize(
    "waiting",
    [
        item(({"args": 1},)),
        b"",
        b"not json",
        b"[]",
        b'{"body": 5, "properties": {}}',
        json.dumps(
            {"body": base64.b64encode(b"7").decode(), "properties": {"body_encoding": "base64"}}
        ).encode(),
        b"[" * 100_000,
    ],
    ids=itertools.count(),  # one of them is made anew in each process
)
def test_what_tells_no_arrival_is_no_error(waiting: bytes) -> None:
    assert arrival_of(waiting) is None
