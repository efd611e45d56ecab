"""What stock workers left unacked comes back by their timeout, and only to its own queue's workers."""

from __future__ import annotations

import time
from typing import Any

import redis
from kombu import Connection, Queue

from forwarder.testing.producer import Producer
from forwarder.testing.services import Valkey
from tests.integration.redis_leases.peer import MakePeer, take_over


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
        leave_unacked(own.url, queue_name, age_s=0)
        leave_unacked(own.url, "others", age_s=1000, number=150)
        assert take_over(peer(own)) == 1
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
        assert take_over(peer(own)) == 1
        assert redis.Redis.from_url(own.url).llen(queue_name) == 1
