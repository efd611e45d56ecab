"""Copies of messages: what they keep, and what happens when the broker refuses, is silent or went away."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import Message
from amqp.exceptions import MessageNacked, RecoverableConnectionError

from forwarder.brokers.amqp.copies import Copies
from forwarder.brokers.amqp.transport import ANSWER_TIMEOUT_S
from forwarder.brokers.dead_letters import NoSuchQueue

RAW = Message(b"body", priority=3, expiration="600", user_id="hunter2", application_headers={"old": 1})


class Broker:
    """What the copies' connections reach: queues, and errors to raise one by one."""

    def __init__(self) -> None:
        self.queues: dict[str, list[Message]] = {"q": []}
        self.errors: list[Exception] = []
        self.declared: dict[str, Any] = {}
        self.connections: list[Connection] = []

    def connect(self) -> Any:
        self.connections.append(Connection(self))
        return self.connections[-1]


class Connection:
    """As much of kombu's connection and py-amqp's channel as copies use."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.closed = False
        self.timeouts: list[float] = []
        self.connection = SimpleNamespace(sock=SimpleNamespace(settimeout=self.timeouts.append))
        self.events: dict[str, set[Callable[..., None]]] = {"basic_return": set()}

    def ensure_connection(self, **_: Any) -> None: ...

    def channel(self) -> Connection:
        return self

    def close(self) -> None:
        self.closed = True

    def queue_declare(self, queue: str, **options: Any) -> None:
        self._broker.queues[queue] = []
        self._broker.declared = options

    def basic_publish_confirm(
        self, copy: Message, *, exchange: str, routing_key: str, mandatory: bool
    ) -> None:
        assert (exchange, mandatory, self.closed) == ("", True, False)
        if self._broker.errors:
            raise self._broker.errors.pop(0)
        if routing_key in self._broker.queues:
            self._broker.queues[routing_key].append(copy)
        else:
            for listener in self.events["basic_return"]:
                listener(None, copy)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def copies(broker: Broker) -> Copies:
    return Copies(connect=broker.connect)


def test_a_copy_has_new_headers_and_everything_else_but_the_user_that_published_the_original(
    broker: Broker, copies: Copies
) -> None:
    copies.publish("q", RAW, headers={"new": 2}, without=("expiration",))
    [copy] = broker.queues["q"]
    assert copy.body == b"body"
    assert copy.properties == {"priority": 3, "application_headers": {"new": 2}}


def test_one_connection_is_kept_and_writing_to_it_is_bounded(broker: Broker, copies: Copies) -> None:
    copies.publish("q", RAW, headers={})
    copies.publish("q", RAW, headers={})
    [connection] = broker.connections
    assert connection.timeouts == [ANSWER_TIMEOUT_S]
    copies.close()
    assert connection.closed


def test_a_copy_that_no_queue_takes_is_an_error_and_the_next_one_is_not(
    broker: Broker, copies: Copies
) -> None:
    with pytest.raises(NoSuchQueue):
        copies.publish("gone", RAW, headers={})
    copies.publish("q", RAW, headers={})
    assert len(broker.queues["q"]) == len(broker.connections) == 1


def test_the_dead_letters_are_a_durable_classic_queue_made_when_it_is_first_needed(
    broker: Broker, copies: Copies
) -> None:
    copies.publish("q.dead", RAW, headers={}, create=True)
    assert len(broker.queues["q.dead"]) == 1
    assert broker.declared == {
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": "classic"},
    }


def test_a_connection_that_died_while_idle_is_replaced_once(broker: Broker, copies: Copies) -> None:
    copies.publish("q", RAW, headers={})
    broker.errors = [RecoverableConnectionError()]
    copies.publish("q", RAW, headers={})
    assert len(broker.queues["q"]) == len(broker.connections) == 2
    broker.errors = [RecoverableConnectionError(), TimeoutError()]
    with pytest.raises(TimeoutError):
        copies.publish("q", RAW, headers={})
    assert all(connection.closed for connection in broker.connections)


def test_a_new_connection_that_fails_is_not_tried_again(broker: Broker, copies: Copies) -> None:
    broker.errors = [TimeoutError()]
    with pytest.raises(TimeoutError):
        copies.publish("q", RAW, headers={})
    assert len(broker.connections) == 1


def test_a_copy_that_the_broker_refuses_is_not_sent_twice_and_leaves_no_connection(
    broker: Broker, copies: Copies
) -> None:
    """A confirmation that nobody read would be taken for the next copy's."""
    copies.publish("q", RAW, headers={})
    broker.errors = [MessageNacked()]
    with pytest.raises(MessageNacked):
        copies.publish("q", RAW, headers={})
    assert len(broker.queues["q"]) == 1
    assert [connection.closed for connection in broker.connections] == [True]
