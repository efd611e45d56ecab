"""Leases on a real server: what is taken is registered, and comes back when nobody holds it any more."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
import redis
from kombu import Connection, Queue

from forwarder.brokers.dead_letters import DEATH_HEADER, NoSuchLetter
from forwarder.brokers.leases import Death, Delivery, LeaseBook, Settlement
from forwarder.brokers.redis.dead_letters import RedisDeadLetters
from forwarder.brokers.redis.leases import RedisLeases
from forwarder.brokers.redis.transport import broker_client
from forwarder.testing.producer import Producer
from forwarder.testing.services import Valkey

TRANSPORT = "forwarder.brokers.redis.transport:RedisTransport"
VISIBILITY_S = 2.0
TASK = "forwarder.forward"


class Peer:
    """One worker's Redis side, without the worker: a consumer, a lease book and a keeper by hand."""

    def __init__(self, url: str, queue: str, *, slots: int = 100, bytes_max: int = 1_000_000) -> None:
        self.queue = queue
        self.got: list[Delivery] = []
        self._side = Connection(url, transport=TRANSPORT, transport_options={"socket_timeout": 1.0})
        self.leases = RedisLeases(
            client=lambda: broker_client(self._side),
            queues=[queue],
            visibility_timeout_s=VISIBILITY_S,
            message_bytes_max=bytes_max,
            stock_visibility_timeout_s=30,
        )
        self.book = LeaseBook(lambda: self.leases)
        self.channel: Any
        self.connection: Any = Connection(url, transport=TRANSPORT, transport_options={"book": self.book})
        self.channel = self.connection.channel()
        self.channel.basic_qos(prefetch_count=slots)
        self.consumer: Any = self.connection.Consumer(
            [Queue(queue, routing_key=queue)], channel=self.channel, on_message=self._receive
        )
        self.consumer.consume()

    def _receive(self, message: Any) -> None:
        self.got.append(self.book.open(message))

    def drain(self, number: int, timeout_s: float = 5.0) -> list[Delivery]:
        """Receive until there are ``number`` in all; return what there is after the timeout."""
        end = time.monotonic() + timeout_s
        while len(self.got) < number and time.monotonic() < end:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.3)
        return self.got

    def ask(self, *, wait: bool) -> None:
        """Send a take, or a wait, and leave its reply unread."""
        self.channel._wait_next = wait
        self.connection.transport.cycle.on_poll_start()

    def keep(self, seconds: float = 0.0) -> list[Delivery]:
        """Do what the keeper does, at its pace; return what was lost."""
        lost: list[Delivery] = []
        end = time.monotonic() + seconds
        while True:
            lost += self.leases.renew(self.book.leased())
            for delivery in lost:
                self.book.lose(delivery)
            self.leases.take_over()
            if time.monotonic() >= end:
                return lost
            time.sleep(VISIBILITY_S / 6)

    def vanish(self) -> None:
        """Leave as a killed process does: nothing is returned, the sockets just end."""
        self.channel.client.connection._sock.shutdown(socket.SHUT_RDWR)
        self.channel._in_poll = None

    def close(self) -> None:
        """Stop as a worker that was told to."""
        self.connection.close()
        self.leases.close()
        self._side.close()


MakePeer = Callable[..., Peer]


@pytest.fixture
def peer(valkey: Valkey, queue_name: str) -> Iterator[MakePeer]:
    with ExitStack() as stack:

        def make(server: Valkey = valkey, **options: Any) -> Peer:
            made = Peer(server.url, queue_name, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def server(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


def envelope(queue: str, task_id: str, **headers: Any) -> bytes:
    """Return an item that no Python wrote: other spacing, an empty list that must stay one."""
    item = {
        "headers": {"id": task_id, "task": "forwarder.forward", "x": [], "lang": "go", **headers},
        "body": "W1tdLHt9LHt9XQ==",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "of-its-producer",
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
        },
    }
    return json.dumps(item, separators=(",", ":")).encode()


def own_keys(server: redis.Redis, queue: str) -> dict[str, Any]:
    """Return what is registered for a queue, without the counter."""
    base = f"forwarder:{{{queue}}}:"
    keys = [str(key, "utf-8") for key in server.scan_iter(f"{base}*")]
    sizes: dict[Any, str] = {b"hash": "hlen", b"zset": "zcard", b"list": "llen"}
    return {
        key.removeprefix(base): getattr(server, sizes[server.type(key)])(key)
        for key in keys
        if not key.endswith((":seq", ":intakes"))
    }


def death(delivery: Delivery, code: str = "dead_lettered") -> Death:
    at = "2026-01-02T03:04:05+00:00"
    return Death(code=code, error="why", queue=delivery.queue, deliveries=delivery.number, at=at)


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


@pytest.mark.parametrize("waiting", [True, False])
def test_what_a_killed_worker_has_taken_comes_to_an_idle_peer_byte_for_byte_and_counted(
    peer: MakePeer, server: redis.Redis, queue_name: str, waiting: bool
) -> None:
    item = envelope(queue_name, "a")
    peer_at_rest = peer()
    dead = peer()
    if waiting:
        dead.drain(1, timeout_s=0.6)
    server.lpush(queue_name, item)
    dead.drain(1)
    dead.vanish()
    began = time.monotonic()
    while not peer_at_rest.got:
        peer_at_rest.keep()
        peer_at_rest.drain(1, timeout_s=0.3)
        assert time.monotonic() - began < VISIBILITY_S + 10
    (delivery,) = peer_at_rest.got
    assert time.monotonic() - began > VISIBILITY_S - 1
    assert delivery.number == 2
    assert delivery.message.delivery_info["redelivered"] is True
    assert delivery.receipt.item == item


def test_a_reply_that_its_worker_never_read_is_leased_all_the_same(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    """The step is one script: what a client doesn't live to see is on the server."""
    me = peer()
    server.lpush(queue_name, envelope(queue_name, "a"))
    me.ask(wait=False)
    time.sleep(0.1)
    assert own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1}
    me.vanish()
    assert own_keys(server, queue_name) == {"unacked": 1, "leases": 1, "deliveries": 1}


def test_what_arrives_while_a_worker_waits_is_never_nowhere(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    """A worker that dies between the wait and the take leaves the message in its intake list."""
    dead, living = peer(), peer()
    dead.ask(wait=False)
    assert dead.channel._read_reply() == []
    dead.ask(wait=True)
    server.lpush(queue_name, envelope(queue_name, "a"))
    time.sleep(0.1)
    assert server.llen(dead.leases.intake(queue_name)) == 1
    dead.vanish()
    began = time.monotonic()
    while not living.got and time.monotonic() - began < VISIBILITY_S + 10:
        living.keep()
        living.drain(1, timeout_s=0.3)
    assert [delivery.number for delivery in living.got] == [1]  # it was never delivered


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


def test_a_requeue_counts_and_a_hand_back_does_not(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    server.lpush(queue_name, envelope(queue_name, "a"))
    numbers = []
    for how in (Settlement.REQUEUE, Settlement.HAND_BACK, Settlement.HAND_BACK, Settlement.REQUEUE):
        me = peer()  # another process each time: the count is the server's
        (delivery,) = me.drain(1)
        numbers.append(delivery.number)
        me.book.settle(delivery, how)
        me.close()
    assert numbers == [1, 2, 2, 2]


def test_messages_go_back_to_where_they_are_taken_next_in_their_order(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer(slots=2)
    server.lpush(queue_name, *(envelope(queue_name, str(n)) for n in range(4)))
    me.drain(2)
    me.channel.close()
    me.book.hand_back(me.got)
    assert [delivery.task_id for delivery in peer().drain(4)] == ["0", "1", "2", "3"]


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
        me.connection.drain_events(timeout=2.0)
    assert len(me.drain(3)) == 3
    assert 0.3 <= time.monotonic() - began < 0.6
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
    if waits:
        me.ask(wait=True)
    server.lpush(queue_name, envelope(queue_name, "a"))
    if not waits:
        me.ask(wait=False)
    getattr(me.consumer if leave == "cancel" else me.channel, leave)()
    assert server.llen(queue_name) == 1
    assert not own_keys(server, queue_name)
    assert me.got == []


def test_what_is_in_flight_outlives_the_connection_and_is_acked_under_its_lease(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    me = peer()
    server.lpush(queue_name, envelope(queue_name, "a"))
    (delivery,) = me.drain(1)
    me.connection.close()
    assert server.llen(queue_name) == 0
    assert own_keys(server, queue_name)["leases"] == 1
    assert me.leases.renew([delivery]) == []
    assert me.leases.ack(delivery) is True
    assert own_keys(server, queue_name) == {}


def test_a_renewed_lease_is_kept_and_one_that_a_peer_took_is_lost_and_forgiven(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    stalled, living = peer(), peer()
    server.lpush(queue_name, envelope(queue_name, "a"))
    (delivery,) = stalled.drain(1)
    stalled.keep()
    end = time.monotonic() + 1.5 * VISIBILITY_S
    while time.monotonic() < end:
        assert stalled.keep() == []
        living.keep()
        time.sleep(0.3)
    assert living.drain(1, timeout_s=0.3) == []
    living.keep(2 * VISIBILITY_S)  # the other one does not renew any more
    (taken,) = living.drain(1)
    assert taken.number == 2
    assert stalled.keep() == [delivery]
    assert stalled.leases.ack(delivery) is False
    living.book.settle(taken, Settlement.REQUEUE)
    living.got.clear()
    assert living.drain(1)[0].number == 2, "the stall was not the task's fault"


def test_after_a_freeze_of_the_server_owners_renew_before_anybody_takes_over(
    peer: MakePeer, queue_name: str
) -> None:
    with Valkey() as own:
        owner, other = peer(own), peer(own)
        redis.Redis.from_url(own.url).lpush(queue_name, envelope(queue_name, "a"))
        owner.drain(1)
        owner.keep()
        other.keep(VISIBILITY_S / 2 + 0.2)  # past the grace of its start
        owner.keep()
        os.kill(own.pid, signal.SIGSTOP)
        time.sleep(VISIBILITY_S + 1)
        os.kill(own.pid, signal.SIGCONT)
        other.keep()  # the first to come back
        assert other.drain(1, timeout_s=0.3) == []
        assert owner.keep() == []
        owner.book.settle(owner.got[0], Settlement.ACK)


def test_what_a_dead_worker_with_many_tasks_left_comes_back_in_one_round(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    other, dead = peer(), peer(slots=350)
    server.lpush(queue_name, *(envelope(queue_name, str(n)) for n in range(350)))
    dead.drain(350)
    dead.vanish()
    for _ in range(5):  # in contact, so that it need not wait for others
        other.leases.renew([])
        time.sleep(VISIBILITY_S / 4)
    assert other.leases.take_over() == 350
    assert server.llen(queue_name) == 350
    me = peer(slots=1)
    (first,) = me.drain(1)
    assert int(first.task_id or 350) < 20, "one of the oldest: those of one take have one deadline"


def test_leases_are_renewed_on_a_server_without_memory(peer: MakePeer, queue_name: str) -> None:
    with Valkey() as own, redis.Redis.from_url(own.url) as server:
        owner, other = peer(own), peer(own)
        server.lpush(queue_name, envelope(queue_name, "a"))
        owner.drain(1)
        server.config_set("maxmemory", 1)
        end = time.monotonic() + 1.5 * VISIBILITY_S
        while time.monotonic() < end:
            assert owner.keep() == []
            other.keep()
            time.sleep(0.3)
        owner.book.settle(owner.got[0], Settlement.ACK)
        assert own_keys(server, queue_name) == {}


def test_after_a_server_refused_all_writes_owners_renew_before_anybody_takes_over(
    peer: MakePeer, queue_name: str
) -> None:
    with Valkey() as own, redis.Redis.from_url(own.url) as server:
        owner, other = peer(own), peer(own)
        server.lpush(queue_name, envelope(queue_name, "a"))
        owner.drain(1)
        server.config_set("min-replicas-to-write", 1)
        end = time.monotonic() + VISIBILITY_S + 0.5
        while time.monotonic() < end:
            with suppress(redis.ResponseError):
                other.keep()
            time.sleep(0.3)
        server.config_set("min-replicas-to-write", 0)
        other.keep()  # the first to come back
        assert owner.keep() == []
        owner.book.settle(owner.got[0], Settlement.ACK)
        assert own_keys(server, queue_name) == {}


def test_a_server_that_forgot_everything_is_told_again_what_runs(peer: MakePeer, queue_name: str) -> None:
    with Valkey() as own:
        me, other = peer(own), peer(own)
        redis.Redis.from_url(own.url).lpush(queue_name, *(envelope(queue_name, n) for n in "abc"))
        acked, back, kept = me.drain(3)
        me.keep()
        own.process.kill()
        own.restart()
        me.vanish()
        me.book.settle(acked, Settlement.ACK)  # before anything was renewed
        me.book.settle(back, Settlement.HAND_BACK)
        assert [delivery.task_id for delivery in other.drain(1)] == ["b"]
        tag = kept.tag
        assert me.leases.renew([kept]) == []
        assert kept.tag != tag
        server = redis.Redis.from_url(own.url)
        assert own_keys(server, queue_name)["leases"] == 2
        assert me.leases.ack(kept) is True
        assert server.llen(queue_name) == 0


def test_a_server_that_comes_back_with_an_old_snapshot_gives_no_second_copy(
    peer: MakePeer, queue_name: str
) -> None:
    with Valkey() as own:
        me = peer(own)
        server = redis.Redis.from_url(own.url)
        server.lpush(queue_name, envelope(queue_name, "a"), envelope(queue_name, "b"))
        first, second = me.drain(2)
        own.process.kill()
        own.restart()
        me.vanish()
        # What a snapshot from before the take holds, and a peer that is quicker for one of them.
        server.lpush(queue_name, envelope(queue_name, "a"), envelope(queue_name, "b"))
        quick = peer(own, slots=1)
        assert [delivery.task_id for delivery in quick.drain(1)] == ["a"]
        quick.consumer.cancel()
        assert me.leases.renew([first, second]) == [first]
        assert server.llen(queue_name) == 0
        assert me.leases.ack(second) is True
        assert own_keys(server, queue_name)["leases"] == 1


def test_a_server_that_kept_everything_finds_the_leases_as_they_were(peer: MakePeer, queue_name: str) -> None:
    with Valkey(persistent=True) as own:
        me = peer(own)
        redis.Redis.from_url(own.url).lpush(queue_name, envelope(queue_name, "a"))
        (delivery,) = me.drain(1)
        tag = delivery.tag
        own.process.kill()
        own.restart()
        me.vanish()
        assert me.leases.renew([delivery]) == []
        assert delivery.tag == tag
        me.book.settle(delivery, Settlement.ACK)
        assert own_keys(redis.Redis.from_url(own.url), queue_name) == {}


def leave_unacked(url: str, queue: str, age_s: float, number: int = 1) -> None:
    """Take messages as stock kombu does and die with them."""
    with Connection(url) as connection:
        channel: Any = connection.channel()
        for _ in range(number):
            channel.basic_get(queue)
        for tag in list(channel.qos._delivered):
            channel.client.zadd("unacked_index", {tag: time.time() - age_s})
        channel.qos._delivered.clear()
        channel.qos._on_collect.cancel()


def test_a_stock_workers_leftovers_come_back_by_their_own_timeout_and_only_ours(
    peer: MakePeer, queue_name: str
) -> None:
    with Valkey() as own:
        for queue, number in ((queue_name, 2), ("others", 150)):
            sender = Producer(broker_url=own.url, backend=own.url, queue=queue)
            for _ in range(number):
                sender.send({}, priority=6)
            sender.close()
        server = redis.Redis.from_url(own.url)
        items = server.lrange(f"{queue_name}\x06\x166", 0, -1)
        leave_unacked(own.url, queue_name, age_s=31)
        leave_unacked(own.url, queue_name, age_s=20)
        leave_unacked(own.url, "others", age_s=1000, number=150)
        me = peer(own)
        me.leases.renew([])
        time.sleep(VISIBILITY_S / 2 + 0.1)
        assert me.leases.take_over() == 1
        assert server.lrange(f"{queue_name}\x06\x166", 0, -1) == items[1:]
        assert server.hlen("unacked") == server.zcard("unacked_index") == 151


def test_a_message_bound_through_an_exchange_is_found_among_a_stock_workers_leftovers(
    peer: MakePeer, queue_name: str
) -> None:
    with Valkey() as own:
        with Connection(own.url) as connection:
            queue = Queue(queue_name, exchange="tasks", routing_key="key")
            bound = queue(connection.channel())
            bound.declare()
            producer = connection.Producer(exchange=queue.exchange, routing_key="key")
            producer.publish({"payload": []}, serializer="json")
        leave_unacked(own.url, queue_name, age_s=31)
        me = peer(own)
        me.leases.renew([])
        time.sleep(VISIBILITY_S / 2 + 0.1)
        assert me.leases.take_over() == 1
        assert redis.Redis.from_url(own.url).llen(queue_name) == 1


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
