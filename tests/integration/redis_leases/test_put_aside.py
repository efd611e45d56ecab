"""Items that nobody can read, and dead letters: put aside as they came, and requeued as new ones."""

from __future__ import annotations

import json

import pytest
import redis

from forwarder.brokers.dead_letters import DEATH_HEADER, NoSuchLetter
from forwarder.brokers.deliveries import Settlement
from forwarder.brokers.redis.dead_letters import RedisDeadLetters
from tests.integration.redis_leases.peer import MakePeer, death, envelope, own_keys

UNREADABLE = [b"not json", b"\xff\xfe\x00", b"[]", b"{}", b'{"body": 1, "headers": [], "properties": {}}']


@pytest.mark.parametrize("item", UNREADABLE)
def test_an_item_that_is_no_envelope_comes_with_a_lease_and_is_put_aside_as_it_is(
    peer: MakePeer, server: redis.Redis, queue_name: str, item: bytes
) -> None:
    me = peer()
    server.lpush(queue_name, item)
    (delivery,) = me.drain(1)
    assert delivery.message.body in ("", b"")
    me.book.settle(delivery, Settlement.PUT_ASIDE, death(delivery, "invalid_message"))
    assert own_keys(server, queue_name) == {}
    assert me.book.leased() == []
    dead = RedisDeadLetters(client=lambda: server, queues=[queue_name])
    (letter,) = dead.list(10)
    assert letter.code == "invalid_message"
    assert dead.requeue({letter.id}, lambda _: None) == [letter]
    assert server.lrange(queue_name, 0, -1) == [item]


def test_an_item_that_is_too_large_is_not_sent_but_put_aside_with_its_id(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer(bytes_max=2000)
    large = envelope(queue_name, "large-one", filler="\x00/é" * 2000)
    server.lpush(queue_name, large, envelope(queue_name, "b"))
    delivery, other = me.drain(2)
    assert other.task_id == "b"
    assert delivery.task_id == "large-one"
    assert delivery.message.properties["item_bytes"] == len(large)
    me.book.settle(delivery, Settlement.PUT_ASIDE, death(delivery, "invalid_message"))
    dead = RedisDeadLetters(client=lambda: server, queues=[queue_name])
    assert [letter.id for letter in dead.list(10)] == ["large-one"]
    dead.requeue(None, lambda _: None)
    assert server.lrange(queue_name, 0, -1) == [large]


def test_dead_letters_are_envelopes_with_their_reason_and_start_anew(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer()
    server.lpush(queue_name, *(envelope(queue_name, str(n)) for n in range(30)))
    for delivery in me.drain(30):
        me.book.settle(delivery, Settlement.PUT_ASIDE, death(delivery))
    dead = RedisDeadLetters(client=lambda: server, queues=[queue_name])
    assert [letter.id for letter in dead.list(3)] == ["0", "1", "2"]
    opened = dead.show("1")
    assert (opened.letter.deliveries, opened.letter.queue, opened.body) == (1, queue_name, "[[],{},{}]")
    stored = json.loads(server.lindex(f"{queue_name}.dead", -1) or b"")
    assert stored["headers"][DEATH_HEADER]["code"] == "dead_lettered"
    assert stored["headers"]["x"] == []
    assert [letter.id for letter in dead.purge({"2", "25"})] == ["2", "25"]
    with pytest.raises(NoSuchLetter):
        dead.show("2")
    seen: list[str] = []
    went = dead.requeue({"1", "29"}, lambda letter: seen.append(letter.id))
    assert seen == [letter.id for letter in went] == ["1", "29"]
    me.got.clear()
    again = me.drain(2)
    assert [(delivery.task_id, delivery.number) for delivery in again] == [("1", 1), ("29", 1)]
    assert DEATH_HEADER not in again[0].message.headers
    assert len(dead.purge(None)) == 26
    assert dead.list(10) == []


def test_a_dead_letter_that_can_not_be_requeued_stays_where_it_is(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer()
    server.lpush(queue_name, envelope(queue_name, "a"))
    (delivery,) = me.drain(1)
    me.book.settle(delivery, Settlement.PUT_ASIDE, death(delivery))
    me.channel.close()
    server.set(queue_name, "of another type")
    dead = RedisDeadLetters(client=lambda: server, queues=[queue_name])
    with pytest.raises(redis.ResponseError):
        dead.requeue(None, lambda _: None)
    assert [letter.id for letter in dead.list(10)] == ["a"]
    server.delete(queue_name)
    assert len(dead.requeue(None, lambda _: None)) == 1
    assert (server.llen(queue_name), dead.list(10)) == (1, [])
