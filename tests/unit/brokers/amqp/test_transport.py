"""What the parts for RabbitMQ rely on in kombu and py-amqp, and what they add to it."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import amqp as py_amqp
import pytest
from amqp import method_framing
from amqp.abstract_channel import AbstractChannel
from amqp.exceptions import NotFound
from celery.events.dispatcher import EventDispatcher
from kombu import Exchange, Queue
from kombu.pidbox import Mailbox

from forwarder.brokers.amqp import transport as amqp
from forwarder.brokers.amqp.transport import (
    ANSWER_TIMEOUT_S,
    ANSWER_TOTAL_S,
    CONSUMER_TIMEOUT,
    AdoptedQueue,
)

#: Any: the stubs know the public names alone.
StockChannel: Any = py_amqp.Channel


def test_frames_of_several_threads_do_not_mix_because_py_amqp_writes_under_a_lock() -> None:
    """Acks are sent by whoever settles. Without that lock, AmqpLeases needs one of its own."""
    source = inspect.getsource(method_framing.frame_writer)
    assert "buffer_lock = threading.Lock()" in source
    assert "with buffer_lock" in source


def test_py_amqp_opens_a_channel_that_the_broker_closed_with_the_method_that_we_count() -> None:
    assert "self._do_revive()" in inspect.getsource(StockChannel._on_close)
    assert "self.open()" in inspect.getsource(StockChannel._do_revive)
    assert "self.is_open = False" in inspect.getsource(StockChannel._do_revive)


def test_py_amqp_raises_for_a_returned_message_only_when_nobody_listens() -> None:
    assert "self.events.get('basic_return')" in inspect.getsource(StockChannel._on_basic_return)


class Connection:
    """As much of py-amqp's connection as a channel and a queue use."""

    confirm_publish = False
    answering = staticmethod(nullcontext)

    def __init__(self, version: str | None = None) -> None:
        self.channels: dict[int, Any] = {}
        self.server_properties = {"version": version} if version else {}
        self.client = SimpleNamespace(channel=lambda: SimpleNamespace(close=lambda: None))

    def _get_free_channel_id(self) -> int:
        return len(self.channels) + 1


def test_a_channel_counts_its_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Any, *_: Any, **__: Any) -> None:
        self._on_open_ok()

    monkeypatch.setattr(amqp.Channel, "send_method", answer)
    channel: Any = amqp.Channel(Connection())
    channel.open()
    assert channel.life == 1
    channel.open()
    assert channel.life == 1, "it was open"
    channel._do_revive()
    assert (channel.life, channel.is_open) == (2, True)


class Published:
    """A channel on a connection with confirmations; what it does is recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("confirm_select", "_basic_publish", "wait"):
            monkeypatch.setattr(StockChannel, name, lambda *_, name=name, **__: self.calls.append(name))
        connection = Connection()
        connection.confirm_publish = True
        self._channel: Any = amqp.Channel(connection)

    def publish(self, delivery_mode: int | None) -> list[str]:
        """Publish as kombu does; return what the channel did."""
        self.calls.clear()
        properties = {} if delivery_mode is None else {"delivery_mode": delivery_mode}
        self._channel.basic_publish(py_amqp.Message("body", **properties), exchange="x")
        return list(self.calls)


@pytest.mark.parametrize("delivery_mode", [2, None])
def test_a_task_is_published_once_the_broker_has_confirmed_it(
    monkeypatch: pytest.MonkeyPatch, delivery_mode: int | None
) -> None:
    channel = Published(monkeypatch)
    assert channel.publish(delivery_mode) == ["confirm_select", "_basic_publish", "wait"]


def test_celerys_main_loop_does_not_wait_until_an_event_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Published(monkeypatch)
    assert channel.publish(1) == ["_basic_publish"]
    assert channel.publish(1) == ["_basic_publish"]


def test_on_a_channel_that_confirms_every_confirmation_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody reads would be taken for that of the next task."""
    channel = Published(monkeypatch)
    channel.publish(2)
    assert channel.publish(1) == ["_basic_publish", "wait"]


def test_celerys_events_and_replies_are_transient() -> None:
    assert inspect.signature(EventDispatcher).parameters["delivery_mode"].default == amqp.TRANSIENT
    mailbox: Any = Mailbox("celery")
    assert mailbox.reply_exchange.delivery_mode == Exchange.TRANSIENT_DELIVERY_MODE == amqp.TRANSIENT


@pytest.mark.parametrize(("asked", "waited"), [(None, ANSWER_TIMEOUT_S), (0, 0), (2.0, 2.0)])
def test_nothing_is_waited_for_without_a_bound(
    monkeypatch: pytest.MonkeyPatch, asked: float | None, waited: float
) -> None:
    timeouts: list[float | None] = []

    def blocking_read(self: Any, timeout: float | None = None) -> bool:
        timeouts.append(timeout)
        return True

    monkeypatch.setattr(py_amqp.Connection, "blocking_read", blocking_read)
    amqp.Connection().drain_events(timeout=asked)
    assert timeouts == [waited]


def test_an_answer_that_never_comes_is_not_waited_for_as_long_as_heartbeats_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0

    def heartbeat(self: Any, timeout: float | None = None) -> None:
        nonlocal now_s
        now_s += 2.0

    monkeypatch.setattr(py_amqp.Connection, "drain_events", heartbeat)
    monkeypatch.setattr("forwarder.brokers.amqp.transport.time.monotonic", lambda: now_s)
    connection = amqp.Connection()
    channel: Any = amqp.Channel.__new__(amqp.Channel)
    channel.connection, channel._pending = connection, {}
    with pytest.raises(TimeoutError):
        channel.wait((50, 11))
    assert ANSWER_TOTAL_S <= now_s < ANSWER_TOTAL_S + 5
    connection.drain_events()  # the loop's own waits have no such bound


def test_py_amqp_waits_for_answers_in_drain_events() -> None:
    assert "conn.drain_events(timeout=timeout)" in inspect.getsource(AbstractChannel.wait)
    assert "self.basic_publish = self.basic_publish_confirm" in inspect.getsource(StockChannel.__init__)


def test_a_message_keeps_what_came() -> None:
    raw = SimpleNamespace(
        properties={"application_headers": {"compression": "x"}},
        body=b"compressed",
        delivery_tag=1,
        delivery_info={},
    )
    assert amqp.RawMessage(raw).raw is raw


def test_a_message_is_told_the_queue_it_was_in(monkeypatch: pytest.MonkeyPatch) -> None:
    consuming: dict[str, Any] = {}
    monkeypatch.setattr(Queue, "consume", lambda self, tag, callback, **_: consuming.update({tag: callback}))
    seen: list[Any] = []
    AdoptedQueue("tasks", routing_key="bound").consume("tag", seen.append, no_ack=False)
    consuming["tag"](SimpleNamespace(delivery_info={"routing_key": "bound"}))
    assert seen[0].delivery_info["queue"] == "tasks"


@pytest.mark.parametrize(
    ("version", "limited"), [("3.10.8", True), ("4.2.1", True), ("4.3.0", False), (None, True)]
)
def test_a_queue_that_is_made_gets_the_time_for_its_tasks_where_the_broker_takes_it(
    monkeypatch: pytest.MonkeyPatch, version: str | None, limited: bool
) -> None:
    declared: list[Any] = []

    def queue_declare(self: Queue, nowait: bool = False, passive: bool = False, channel: Any = None) -> None:
        if passive:
            raise NotFound("no queue")
        declared.append(self.queue_arguments)

    monkeypatch.setattr(Queue, "queue_declare", queue_declare)
    arguments = {"x-queue-type": "classic", CONSUMER_TIMEOUT: 7_200_000}
    queue = AdoptedQueue("tasks", routing_key="tasks", queue_arguments=arguments)
    queue.declare(channel=SimpleNamespace(connection=Connection(version)))
    expected = arguments if limited else {"x-queue-type": "classic"}
    assert declared == [expected]
