"""Who holds a message: until it is settled, renewed no more, or taken over by a peer."""

from __future__ import annotations

import time

import pytest
import redis

from forwarder.brokers.deliveries import Delivery, Settlement
from tests.integration.redis_leases.peer import VISIBILITY_S, MakePeer, envelope, own_keys, take_over


@pytest.mark.parametrize("waiting", [True, False])
def test_what_a_killed_worker_has_taken_comes_to_an_idle_peer_byte_for_byte_and_counted(
    peer: MakePeer, server: redis.Redis, queue_name: str, waiting: bool
) -> None:
    item = envelope(queue_name, "a")
    peer_at_rest = peer()
    dead = peer()
    if waiting:
        dead.drain(1, timeout_s=0.6)
    began = time.monotonic()
    server.lpush(queue_name, item)
    dead.drain(1)
    dead.vanish()
    while not peer_at_rest.got:
        peer_at_rest.keep()
        peer_at_rest.drain(1, timeout_s=0.3)
        assert time.monotonic() - began < VISIBILITY_S + 10
    (delivery,) = peer_at_rest.got
    assert time.monotonic() - began > VISIBILITY_S - 1
    assert delivery.number == 2
    assert delivery.message.delivery_info["redelivered"] is True
    assert delivery.receipt.item == item


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


def test_a_renewed_lease_is_kept_and_one_that_a_peer_took_is_lost_and_pardoned(
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
    pardoned: list[Delivery] = []
    stalled.book.pardon = pardoned.append
    assert stalled.keep() == [delivery]
    assert stalled.leases.ack(delivery) is False
    assert pardoned == [delivery], "the stall was not the task's fault"


def test_what_a_dead_worker_with_many_tasks_left_comes_back_in_one_round(
    peer: MakePeer, server: redis.Redis, queue_name: str
) -> None:
    other, dead = peer(), peer(slots=350)
    server.lpush(queue_name, *(envelope(queue_name, str(n)) for n in range(350)))
    dead.drain(350)
    dead.vanish()
    time.sleep(1.25 * VISIBILITY_S)
    assert take_over(other) == 350
    assert server.llen(queue_name) == 350
    me = peer(slots=1)
    (first,) = me.drain(1)
    assert int(first.task_id or 350) < 20, "one of the oldest: those of one take have one deadline"
