"""Taking messages: each is leased and counted in one step, in its order, and no more than there are slots."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import psutil
import pytest
import redis
from kombu import Connection

from forwarder.brokers.deliveries import Settlement
from forwarder.testing.producer import Producer
from forwarder.testing.services import Valkey
from tests.integration.redis_leases.peer import TRANSPORT, MakePeer, envelope, own_keys
from tests.integration.scenes import PATIENCE_S, wait_until


def test_a_message_is_leased_and_counted_when_it_arrives_and_leaves_nothing_behind_when_acked(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer()
    server.lpush(queue_name, envelope(queue_name, "a"))
    (delivery,) = me.drain(1)
    assert own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1}
    assert delivery.task_id == "a"
    assert delivery.number == 1
    assert delivery.message.delivery_info["redelivered"] is False
    me.book.settle(delivery, Settlement.ACK)
    assert own_keys(server, queue_name) == {}
    assert server.llen(queue_name) == 0


def test_a_reply_that_its_worker_never_read_is_leased_all_the_same(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    """The step is one script: what a client doesn't live to see is on the server."""
    me = peer()
    me.begin()
    server.lpush(queue_name, envelope(queue_name, "a"))
    me.ask(wait=False)
    wait_until(lambda: own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1})
    me.vanish()
    assert own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1}


def test_what_arrives_while_a_worker_waits_is_never_nowhere(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    """What the server ends with between the wait and the take right behind it is in the intake list."""
    dead, living = peer(), peer()
    dead.begin()
    server.lpush(queue_name, envelope(queue_name, "a"))
    server.lmove(queue_name, dead.leases.intake(queue_name), "RIGHT", "LEFT")  # what the wait does
    dead.vanish()
    began = time.monotonic()
    while not living.got and time.monotonic() - began < PATIENCE_S:
        living.keep()
        living.drain(1, timeout_s=0.3)
    assert [delivery.number for delivery in living.got] == [1]  # it was never delivered


def test_what_a_worker_waits_for_is_taken_in_the_same_round_trip(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer()
    me.begin()
    me.ask(wait=True)
    server.lpush(queue_name, envelope(queue_name, "a"))
    while not (taken := me.channel._read_reply()):  # the wait was over before: a slow machine
        me.ask(wait=True)
    assert [one.number for one in taken] == [1]
    assert own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1}


def test_a_stock_producers_priorities_are_taken_in_their_order(
    peer: MakePeer, valkey: Valkey, queue_name: str
) -> None:
    sender = Producer(broker_url=valkey.url, backend=valkey.url, queue=queue_name)
    sent = {priority: sender.send({}, priority=priority).id for priority in (9, 3, 6, 0)}
    sender.close()
    me = peer()
    assert [delivery.task_id for delivery in me.drain(4)] == [sent[step] for step in (0, 3, 6, 9)]
    home = me.got[2].receipt.home
    me.book.settle(me.got[2], Settlement.REQUEUE)
    me.got.clear()
    (again,) = me.drain(1)
    assert (again.task_id, again.number, again.receipt.home) == (sent[6], 2, home)
    assert home.endswith("6")


def test_two_identical_items_are_two_messages(peer: MakePeer, server: redis.Redis, queue_name: str) -> None:
    me = peer()
    server.lpush(queue_name, *[envelope(queue_name, "a")] * 2)
    first, second = me.drain(2)
    assert first.tag != second.tag
    me.book.settle(first, Settlement.ACK)
    assert own_keys(server, queue_name)["unacked"] == 1
    me.book.settle(second, Settlement.REQUEUE)
    assert server.llen(queue_name) == 1


def test_no_more_is_taken_than_there_are_slots_and_a_slot_that_gets_free_is_filled_at_once(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer(slots=2)
    server.lpush(queue_name, *(envelope(queue_name, str(n)) for n in range(5)))
    assert len(me.drain(5, timeout_s=0.7)) == 2
    assert server.llen(queue_name) == 3
    cpu = psutil.Process().cpu_times()
    me.drain(5, timeout_s=2.0)
    spent = psutil.Process().cpu_times()
    assert spent.user + spent.system - cpu.user - cpu.system < 0.2, "it spins while every slot is taken"
    settling = threading.Timer(0.3, me.book.settle, (me.got[0], Settlement.ACK))
    settling.start()
    began = time.monotonic()
    with suppress(TimeoutError):  # as Celery's blocking loop waits
        me.connection.drain_events(timeout=10.0)
    assert len(me.drain(3)) == 3
    assert 0.3 <= time.monotonic() - began < 3, "woken, not only by its timeout"
    settling.join()


def test_an_idle_worker_costs_next_to_nothing(peer: MakePeer, server: redis.Redis) -> None:
    me = peer()
    me.drain(1, timeout_s=0.5)
    cpu, calls = psutil.Process().cpu_times(), server.info("stats")["total_commands_processed"]
    me.drain(1, timeout_s=3.0)
    spent = psutil.Process().cpu_times()
    assert spent.user + spent.system - cpu.user - cpu.system < 0.15
    # Two a wait, and what the scripts call.
    assert server.info("stats")["total_commands_processed"] - calls < 3 / 0.25 * 12


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_what_arrives_while_a_consumer_stops_is_given_back(
    peer: MakePeer, server: redis.Redis, queue_name: str, waits: bool, leave: str
) -> None:
    me = peer()
    me.begin()
    if waits:
        me.ask(wait=True)
    server.lpush(queue_name, envelope(queue_name, "a"))
    if not waits:
        me.ask(wait=False)
    getattr(me.consumer if leave == "cancel" else me.channel, leave)()
    assert server.llen(queue_name) == 1
    assert not own_keys(server, queue_name)
    assert me.got == []


def test_a_connection_without_a_book_is_kombus_own(valkey: Valkey, queue_name: str) -> None:
    with Connection(valkey.url, transport=TRANSPORT) as connection:
        queue = connection.SimpleQueue(queue_name)
        queue.put({"a": []})
        message = queue.get(timeout=5)
        assert message.payload == {"a": []}
        assert redis.Redis.from_url(valkey.url).zcard("unacked_index") == 1
        message.ack()
        assert redis.Redis.from_url(valkey.url).zcard("unacked_index") == 0
        queue.close()
