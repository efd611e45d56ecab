"""The server freezes, refuses writes, or is started again: what runs stays with who runs it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import redis

from forwarder.brokers.deliveries import Settlement
from forwarder.testing.services import Valkey
from tests.integration.redis_leases.peer import VISIBILITY_S, MakePeer, envelope, own_keys


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
