"""Events: a bounded number of tries, whatever the broker does, and what failed is sent later."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher
from celery.worker import loops
from celery.worker.heartbeat import Heart
from kombu import Connection

from forwarder.app import client_app
from forwarder.brokers.events import KEPT_MAX, BoundedDispatcher
from forwarder.settings.model import Settings

MANY = 20


class Broker:
    """kombu's broker in memory, which loses the connection whenever the exchange of events is declared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = Connection("memory://")
        self.declared = 0
        self.failures = 0
        channel_class: Any = type(self.connection.default_channel)
        declare, publish = channel_class.exchange_declare, channel_class.basic_publish

        def declare_or_break(channel: Any, *args: Any, **options: Any) -> Any:
            self.declared += 1
            if self.declared <= self.failures:
                raise OSError("the connection is lost")
            return declare(channel, *args, **options)

        def publish_or_break(channel: Any, *args: Any, **options: Any) -> Any:
            if channel.connection is None:
                raise OSError("the channel went with its connection")
            return publish(channel, *args, **options)

        monkeypatch.setattr(channel_class, "exchange_declare", declare_or_break)
        monkeypatch.setattr(channel_class, "basic_publish", publish_or_break)
        # As RabbitMQ's transport has it; kombu's in memory does not know such errors.
        transport = type(self.connection.transport)
        monkeypatch.setattr(transport, "recoverable_connection_errors", (OSError,), raising=False)
        monkeypatch.setitem(vars(self.connection), "recoverable_connection_errors", (OSError,))


@pytest.fixture
def app() -> Celery:
    return client_app(Settings())


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    return Broker(monkeypatch)


@pytest.fixture
def dispatcher(app: Celery, broker: Broker) -> Iterator[BoundedDispatcher]:
    with app.events.Dispatcher(broker.connection) as dispatcher:
        assert isinstance(dispatcher, BoundedDispatcher)
        yield dispatcher


def heartbeat(dispatcher: EventDispatcher) -> None:
    heart: Any = Heart(timer=None, eventer=dispatcher)
    heart._send("worker-heartbeat")


def test_a_heartbeat_is_sent_on_a_new_connection_when_its_own_is_lost(
    dispatcher: BoundedDispatcher, broker: Broker
) -> None:
    broker.failures = 1

    heartbeat(dispatcher)

    assert not dispatcher._outbound_buffer


def test_a_heartbeat_that_fails_again_waits_for_the_next_dispatcher(
    app: Celery, dispatcher: BoundedDispatcher, broker: Broker
) -> None:
    broker.failures = MANY

    heartbeat(dispatcher)

    assert broker.declared == 2
    assert len(dispatcher._outbound_buffer) == 1
    broker.failures = 0
    with app.events.Dispatcher(
        Connection("memory://")
    ) as following:  # as Celery does when it has reconnected
        following.extend_buffer(dispatcher)
        following.flush()
        assert not following._outbound_buffer


def test_stock_celery_tries_a_heartbeat_for_as_long_as_it_fails(app: Celery, broker: Broker) -> None:
    broker.failures = MANY
    with EventDispatcher(broker.connection, app=app) as stock:
        heartbeat(stock)

    assert broker.declared > MANY


def test_a_task_event_is_tried_once_as_celery_does(dispatcher: BoundedDispatcher, broker: Broker) -> None:
    broker.failures = 1

    dispatcher.send("task-received", uuid="a")

    assert broker.declared == 1
    assert len(dispatcher._outbound_buffer) == 1


def test_no_more_events_are_kept_than_a_thousand(dispatcher: BoundedDispatcher, broker: Broker) -> None:
    broker.failures = 10 * KEPT_MAX

    for _ in range(KEPT_MAX + 1):
        dispatcher.send("task-received", uuid="a")

    assert len(dispatcher._outbound_buffer) == KEPT_MAX


def test_the_loop_does_not_wait_for_the_connection_of_the_events(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(broker.connection, "drain_events", lambda *, timeout: asked.append(timeout))
    loop: Any = loops
    with app.events.Dispatcher(broker.connection):
        loop._quick_drain(broker.connection)

    assert asked == [0]


def test_a_connection_that_others_use_is_waited_for_as_before(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(broker.connection, "drain_events", lambda *, timeout: asked.append(timeout))
    with app.events.Dispatcher(broker.connection, None, True, broker.connection.default_channel):
        broker.connection.drain_events(timeout=3)

    assert asked == [3]


def test_what_the_dispatcher_relies_on_in_celery_is_there() -> None:
    assert "_quick_drain(obj.event_dispatcher.connection)" in inspect.getsource(loops.synloop)
    heart: Any = Heart
    assert inspect.signature(heart._send).parameters["retry"].default is True
    assert {"retry", "retry_policy"} <= set(inspect.signature(EventDispatcher.send).parameters)
    assert "self._outbound_buffer = deque()" in inspect.getsource(EventDispatcher.__init__)
