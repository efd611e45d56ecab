"""The Redis channel: what it sends, what it delivers, and the private names of kombu it stands on."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import kombu.common
import pytest
from kombu.common import PREFETCH_COUNT_MAX  # type: ignore[attr-defined]  # the stubs lack it
from kombu.transport import redis, virtual
from kombu.utils import json as kombu_json

from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.redis.dead_letters import RAW_HEADER, letter_parts
from forwarder.brokers.redis.intake import Taken
from forwarder.brokers.redis.messages import GuardedMessage, envelope_of
from forwarder.brokers.redis.qos import BookedQoS
from forwarder.brokers.redis.transport import LeasedChannel, RedisTransport, SlotPoller

DEATH = Death(code="dead_lettered", error="why", queue="q", deliveries=6, at="2026-01-01T00:00:00+00:00")
ITEM = {
    "body": "W10=",
    "headers": {"id": "a"},
    "properties": {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "q"}},
}


def taken(item: bytes | None, number: int = 1, task_id: str | None = None) -> Taken:
    return Taken(
        lease="1:p:sha",
        queue="q",
        home="q",
        number=number,
        again=False,
        taken_s=0.0,
        item=item,
        item_bytes=7,
        task_id=task_id,
    )


def book_with(held: int) -> LeaseBook:
    leases: Any = SimpleNamespace(
        receive=lambda message: Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message)
    )
    book = LeaseBook(lambda: leases)
    for _ in range(held):
        book.open(SimpleNamespace(body=b"12345"))
    return book


@pytest.mark.parametrize(
    ("slots", "held", "may", "free"),
    [(4, 3, True, 1), (4, 4, False, 0), (4, 6, False, 0)],
)
def test_free_slots_are_counted_by_what_the_book_holds(slots: int, held: int, may: bool, free: int) -> None:
    qos = BookedQoS(SimpleNamespace(book=book_with(held)), slots)  # type: ignore[arg-type]
    assert qos.can_consume() is may
    assert qos.can_consume_max_estimate() == free


def test_a_count_that_kombu_calls_unlimited_is_its_largest() -> None:
    """So many tasks that are held until their ETA must not take away the limit for all others."""
    qos = BookedQoS(SimpleNamespace(book=book_with(9)))  # type: ignore[arg-type]
    count = kombu.common.QoS(lambda **told: vars(qos).update(told), PREFETCH_COUNT_MAX)
    count.increment_eventually()
    count.update()
    assert qos.prefetch_count == 0
    assert qos.can_consume()
    assert qos.can_consume_max_estimate() == PREFETCH_COUNT_MAX - 9


@pytest.mark.parametrize("number", [1, 2])
def test_a_message_has_its_lease_for_a_tag_and_knows_that_it_came_before(number: int) -> None:
    payload = envelope_of(taken(json.dumps(ITEM).encode(), number))
    assert payload["properties"]["delivery_tag"] == "1:p:sha"
    assert payload["properties"]["delivery_info"]["redelivered"] is (number > 1)


def test_what_kombu_made_of_an_object_of_a_header_is_one_again() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    item = kombu_json.dumps({**ITEM, "headers": {"at": moment, "plain": {"a": [1]}}}).encode()
    assert envelope_of(taken(item))["headers"] == {"at": moment, "plain": {"a": [1]}}


@pytest.mark.parametrize(
    "item", [b"", b"{", b"[]", b"5", b"null", b"\xff", b"{}", b'{"properties": {}}', b"[" * 100_000]
)
def test_whatever_is_no_envelope_becomes_an_empty_one_under_its_lease(item: bytes) -> None:
    payload = envelope_of(taken(item))
    message: Any = GuardedMessage(payload, channel=SimpleNamespace(book=object()))
    assert (message.delivery_tag, message.headers, message.body) == ("1:p:sha", {}, b"")


def test_a_body_that_can_not_be_decoded_keeps_the_lease() -> None:
    def decode(body: Any, encoding: Any) -> Any:
        raise ValueError

    channel = SimpleNamespace(book=object(), decode_body=decode)
    message = GuardedMessage(envelope_of(taken(json.dumps(ITEM).encode())), channel=channel)
    assert (message.delivery_tag, message.headers) == ("1:p:sha", {})


def test_an_item_that_was_too_large_to_send_tells_its_size_and_its_task() -> None:
    payload = envelope_of(taken(None, task_id="a"))
    assert payload["headers"] == {"id": "a"}
    assert payload["properties"]["item_bytes"] == 7


def test_a_dead_letter_is_the_envelope_with_its_reason() -> None:
    into, text = letter_parts(json.dumps(ITEM).encode(), "a", DEATH)
    letter = json.loads(text)
    assert into == "q.dead"
    assert letter["headers"].pop("x-forwarder-death")["deliveries"] == 6
    assert letter == ITEM


@pytest.mark.parametrize("item", [None, b"no", b"[]", b"{}", b'{"headers": 1}', b"[" * 100_000])
def test_what_is_no_envelope_is_wrapped_in_one_on_the_server(item: bytes | None) -> None:
    _, before, after = letter_parts(item, "a", DEATH)
    letter = json.loads(before + '"the item"' + after)
    assert letter["body"] == "the item"
    assert letter["headers"]["id"] == "a"
    assert letter["headers"][RAW_HEADER] is True
    assert letter["properties"]["delivery_info"]["routing_key"] == "q.dead"


def test_a_channel_without_a_book_leaves_asking_and_reading_to_kombu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_brpop_start", "_brpop_read"):
        monkeypatch.setattr(redis.Channel, name, lambda *_args, name=name: name)
    channel: Any = LeasedChannel.__new__(LeasedChannel)
    channel.book = None
    assert channel._brpop_read() == "_brpop_read"
    channel._brpop_start()
    assert channel.wait_for_slot(1.0) is True
    assert channel.QoS is redis.QoS


@pytest.mark.parametrize(
    ("where", "name", "markers"),
    [
        (redis.Channel, "_brpop_start", ["_queue_cycle.consume(len(self.active_queues))", "self._in_poll ="]),
        (redis.Channel, "_brpop_start", ["self._brpop_sent_at = monotonic()", "self._q_for_pri(queue, pri)"]),
        (redis.Channel, "_brpop_read", ["self._in_poll = None", "self._flush_brpop_reauth()"]),
        (redis.Channel, "_brpop_read", ["self.connection._deliver(", "self._queue_cycle.rotate("]),
        (redis.Channel, "close", ["if self._in_poll:", "self._closing = True"]),
        (redis.Channel, "basic_cancel", ["self._basic_cancel(consumer_tag)", "_in_protected_read"]),
        (redis.Channel, "__init__", ["'BRPOP': self._brpop_read"]),
        (redis.MultiChannelPoller, "_register_BRPOP", ["if not channel._in_poll:", "channel._brpop_start()"]),
        (redis.MultiChannelPoller, "on_poll_start", ["if channel.qos.can_consume():"]),
        (redis.MultiChannelPoller, "get", ["self.on_poll_start()", "self.poller.poll(timeout)"]),
        (redis.Transport, "__init__", ["self.cycle = MultiChannelPoller()"]),
        (
            redis.MultiChannelPoller,
            "maybe_refresh_binding_expiry",
            ["channel.maybe_refresh_binding_expiry()"],
        ),
        (virtual.Transport, "establish_connection", ["self._avail_channels.append("]),
        (virtual.Channel, "close", ["self._qos.restore_unacked_once()"]),
        (virtual.Channel, "basic_consume", ["self.connection._callbacks[queue] = _callback"]),
        (virtual.Transport, "_deliver", ["callback = self._callbacks[queue]"]),
    ],
)
def test_kombus_private_parts_are_as_this_transport_expects_them(
    where: type, name: str, markers: list[str]
) -> None:
    source = inspect.getsource(getattr(where, name))
    for marker in markers:
        assert marker in source, f"{where.__name__}.{name} changed: review brokers/redis/transport.py"


def test_kombus_index_of_unacked_messages_has_the_shape_that_is_swept() -> None:
    assert "dumps([message._raw, EX, RK])" in inspect.getsource(redis.QoS.append)
    assert (redis.Channel.unacked_key, redis.Channel.unacked_index_key) == ("unacked", "unacked_index")
    assert redis.Channel.keyprefix_queue == "_kombu.binding.%s"
    assert redis.PRIORITY_STEPS == [0, 3, 6, 9]


def test_the_transport_uses_the_channel_and_the_poller_with_slots() -> None:
    assert RedisTransport.Channel is LeasedChannel
    transport = RedisTransport(SimpleNamespace(transport_options={}))
    assert isinstance(transport.cycle, SlotPoller)
