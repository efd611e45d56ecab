"""Celery's events, which hold nothing up: neither by tries nor by waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

#: kombu's: the second try is made at once, on a new connection.
ONE_MORE_TRY: Mapping[str, Any] = {"max_retries": 1, "interval_start": 0}

#: Events that wait for a connection; the oldest go first.
KEPT_MAX = 1000


class BoundedDispatcher(EventDispatcher):
    """Celery's dispatcher, with a bound for what it tries and for what it keeps.

    Celery sends a worker's heartbeats with ``retry=True`` (celery/celery#4804), which kombu takes as "for
    ever", under the lock that the next connection needs to take the dispatcher over. Where RabbitMQ's
    connection was lost in between, kombu declares the exchange on the lost channel again and again, at full
    speed, and a worker that is about to come back waits for that lock for good.
    """

    #: Celery's own, which its stubs leave out; there where the connection is not the dispatcher's alone.
    channel: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._outbound_buffer: deque[Any] = deque(maxlen=KEPT_MAX)
        if self.connection is not None and self.channel is None:
            _never_wait_for(self.connection)

    def send(self, *event: Any, **fields: Any) -> Any:
        """Send an event. Blocks for two tries at most; raises nothing when neither succeeds."""
        return super().send(*event, **{**fields, "retry_policy": ONE_MORE_TRY})


def _never_wait_for(connection: Any) -> None:
    """Let the connection of the events be looked at, not waited for.

    After each message Celery's blocking loop (gevent) drains it of the broker's heartbeats, with a timeout
    of 0.1 s, which it nearly always waits for: ten tasks a second, whatever the number of slots.
    """
    drain = connection.drain_events
    connection.drain_events = lambda timeout=None: drain(timeout=0)


class BoundedEvents(Events):
    """What Celery calls ``app.events``, with that dispatcher."""

    dispatcher_cls = "forwarder.brokers.events:BoundedDispatcher"
