"""The SQS channel: messages come from our receiver, and kombu settles nothing."""

from __future__ import annotations

import base64
import inspect
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from celery.worker import state
from kombu.asynchronous import Hub, set_event_loop
from kombu.transport import SQS

from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.transport import SQSTransport
from tests.unit.brokers.sqs.fake import QUEUE_URL, FakeSqs, make_leases, raw_message, refusal


@pytest.fixture
def book(sqs: FakeSqs) -> LeaseBook:
    leases = make_leases(sqs, time.monotonic)
    return LeaseBook(lambda: leases)


@pytest.fixture
def connection(book: LeaseBook) -> Iterator[kombu.Connection]:
    options = {"book": book, "predefined_queues": {"q": {"url": QUEUE_URL}}, "region": "us-east-1"}
    with kombu.Connection("sqs://", transport=SQSTransport, transport_options=options) as connection:
        yield connection


class Consumed:
    """A consumer that opens what it gets, as the worker's does."""

    def __init__(self, connection: kombu.Connection, book: LeaseBook, prefetch: int = 10) -> None:
        self.messages: list[Any] = []
        self.book = book
        # Declaring asks SQS for the queue's size, which the fake does not know.
        queue = kombu.Queue("q", routing_key="q", no_declare=True)
        self.consumer = kombu.Consumer(
            connection.default_channel,
            [queue],
            on_message=self.take,
            prefetch_count=prefetch,
            auto_declare=False,
        )
        self.consumer.consume()

    def take(self, message: Any) -> None:
        self.book.open(message)
        self.messages.append(message)


def declare(connection: Any) -> None:
    connection.default_channel.queue_declare(queue="q")


def refusing(sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def answer(**_: Any) -> None:
        raise error

    monkeypatch.setattr(sqs, "get_queue_attributes", answer)


@pytest.mark.parametrize(
    ("code", "said", "exit_code"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", "queue_missing", 2),
        ("QueueDoesNotExist", "queue_missing", 2),
        ("AccessDenied", "queue_refused", 3),
    ],
)
def test_a_queue_that_may_not_be_had_ends_the_worker_with_one_line_that_names_the_setting(
    *,
    sqs: FakeSqs,
    connection: kombu.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: str,
    said: str,
    exit_code: int,
) -> None:
    refusing(sqs, monkeypatch, refusal(code))
    with pytest.raises(SystemExit) as ended:
        declare(connection)
    assert ended.value.code == exit_code
    assert caplog.messages == [
        f"{said} setting='--sqs-url (FORWARDER_SQS_QUEUE_URL)' url={QUEUE_URL} error={code}"
    ]


def test_an_sqs_that_is_away_ends_no_worker(
    sqs: FakeSqs, connection: kombu.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(sqs, monkeypatch, OSError("no route"))
    with pytest.raises(OSError, match="no route"):
        declare(connection)


def envelope(**changes: Any) -> str:
    plain = {
        "body": base64.b64encode(b"[]").decode(),
        "headers": {"id": "t", "task": "x"},
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {"body_encoding": "base64", "delivery_info": {"routing_key": "q"}},
    }
    return base64.b64encode(json.dumps(plain | changes).encode()).decode()


def test_a_message_reaches_the_consumer_with_its_lease(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection
) -> None:
    sqs.inbox = [raw_message("a", body=envelope()), raw_message("b", body=envelope())]
    consumed = Consumed(connection, book)
    connection.drain_events(timeout=5)
    assert [message.body for message in consumed.messages] == [b"[]", b"[]"]
    assert [delivery.tag for delivery in book.held()] == ["a", "b"]
    assert book.held()[0].task_id == "t"


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "{",
        "[]",
        json.dumps({"properties": 5}),
        envelope(headers=[1]),
        envelope(body="a"),
        envelope(properties={"body_encoding": "klingon", "delivery_info": {}}),
        envelope(properties={"delivery_info": 5}),
        envelope(properties=None),
        base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_an_unreadable_message_reaches_the_consumer_with_its_lease(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection, body: str
) -> None:
    sqs.inbox = [raw_message(body=body)]
    consumed = Consumed(connection, book)
    connection.drain_events(timeout=5)
    [message] = consumed.messages
    assert message.headers == {}
    assert [delivery.tag for delivery in book.held()] == ["h"]


def test_nothing_that_kombu_settles_reaches_sqs(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection
) -> None:
    sqs.inbox = [raw_message(handle, body=envelope()) for handle in "abc"]
    consumed = Consumed(connection, book, prefetch=3)
    connection.drain_events(timeout=5)
    acked, rejected, _ = consumed.messages
    acked.ack()
    rejected.reject(requeue=True)
    consumed.consumer.cancel()
    connection.close()
    assert {name for name, _ in sqs.calls} == {"receive_message"}
    assert len(book) == 3, "a channel that closes ends no lease"


def test_no_more_is_held_than_the_prefetch_count(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection
) -> None:
    sqs.inbox = [raw_message(body=envelope())]
    Consumed(connection, book, prefetch=3)
    connection.drain_events(timeout=5)
    deadline = time.monotonic() + 5
    while len(sqs.named("receive_message")) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    asked = [call["MaxNumberOfMessages"] for call in sqs.named("receive_message")]
    assert (asked[0], set(asked[1:])) == (3, {2})


def test_after_a_stop_nothing_is_delivered_and_what_came_is_handed_back(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqs.inbox = [raw_message(body="late")]
    consumed = Consumed(connection, book)
    leases: Any = book.leases
    deadline = time.monotonic() + 5
    while not leases.loose and time.monotonic() < deadline:
        time.sleep(0.001)
    monkeypatch.setattr(state, "should_stop", 0)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)
    consumed.consumer.cancel()
    assert consumed.messages == []
    assert [copy["MessageBody"] for copy in sqs.queues["q"]] == ["late"]


def test_on_the_event_loop_messages_are_delivered_without_kombus_polling(
    sqs: FakeSqs, book: LeaseBook, connection: kombu.Connection
) -> None:
    hub = Hub()
    ours, theirs = socket.socketpair()
    set_event_loop(hub)
    try:
        hub.add_reader(ours, ours.recv, 1)  # a loop that watches nothing sleeps without listening
        theirs.send(b"x")
        connection.transport.register_with_event_loop(connection.connection, hub)
        hub.run_once()
        sqs.inbox = [raw_message(body=envelope())]
        started_s = time.monotonic()
        consumed = Consumed(connection, book)
        while not consumed.messages and time.monotonic() < started_s + 5:
            hub.run_once()
        assert len(consumed.messages) == 1
        assert time.monotonic() - started_s < 0.9, "call_soon must wake the loop from another thread"
        assert not hasattr(hub, "_current_http_client"), "kombu polls by itself"
    finally:
        connection.close()
        set_event_loop(None)
        hub.close()
        ours.close()
        theirs.close()


def test_on_the_event_loop_nothing_is_delivered_after_a_stop(
    book: LeaseBook, connection: kombu.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumed = Consumed(connection, book)
    transport: Any = connection.transport
    transport.arrived(connection.default_channel, "q", [raw_message(body=envelope())])
    monkeypatch.setattr(state, "should_stop", 0)
    transport._deliver_inbox()  # what the event loop was told to call
    assert consumed.messages == []


def test_every_call_shares_the_one_client_of_the_process(sqs: FakeSqs, connection: kombu.Connection) -> None:
    channel: Any = connection.default_channel
    assert channel.sqs() is channel.sqs(queue="q") is sqs


def test_consuming_without_a_lease_book_is_refused() -> None:
    options = {"predefined_queues": {"q": {"url": QUEUE_URL}}, "region": "us-east-1"}
    with kombu.Connection("sqs://", transport=SQSTransport, transport_options=options) as connection:
        channel: Any = connection.default_channel
        with pytest.raises(KeyError, match="book"):
            channel.basic_consume("q", False, print, "tag")


def test_the_private_names_of_kombu_that_the_channel_stands_on_are_what_they_were() -> None:
    channel: Any = SQS.Channel
    assert [*inspect.signature(channel._message_to_python).parameters] == [
        "self",
        "message",
        "queue_name",
        "q_url",
    ]
    assert [*inspect.signature(channel._envelope_payload).parameters][1:] == [
        "payload",
        "raw_text",
        "message",
        "q_url",
    ]
    # Without a hub the channel polls only in drain_events, which the transport replaces.
    assert "if self.hub:" in inspect.getsource(channel.basic_consume)
    assert "_schedule_queue" not in inspect.getsource(channel.__init__)
    assert "sqs_message" in inspect.getsource(channel._envelope_payload)
    # The client of every blocking call, publishing included.
    assert "self.sqs(queue=" in inspect.getsource(channel._put)


def parameters(function: Any) -> list[str]:
    return [*inspect.signature(function).parameters]
