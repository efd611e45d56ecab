"""What the parts for RabbitMQ rely on in kombu and py-amqp, and what they add to it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import amqp as py_amqp
import pytest
from amqp import method_framing
from amqp.exceptions import NotFound
from kombu import Queue

from forwarder.brokers.amqp import transport as amqp
from forwarder.brokers.amqp.transport import CONSUMER_TIMEOUT, AdoptedQueue

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
