"""A broker that refuses dead letters: the worker goes on, what it can't put aside waits in its queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from amqp import Message
from kombu import Connection

from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import POOLS, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

UNREADABLE, SLOTS = 6, 2
#: Of unreadable messages on Redis: ten times as many as the worker's budget lets it hold.
FILLER_BYTES, FLOOD = 100_000, 1000
MEMORY_LIMIT_MB = 100


def told(worker: Worker, word: str) -> int:
    """Return how many lines of the worker's log have the word."""
    return sum(word in line for line in worker.log().splitlines())


@pytest.mark.parametrize("pool", POOLS)
def test_a_full_queue_of_dead_letters_on_rabbitmq_stops_no_task(
    pool: str,
    worker: StartWorker,
    rabbitmq: RabbitMQ,
    valkey: Valkey,
    model_server: ModelServer,
    producer: MakeProducer,
    queue_name: str,
) -> None:
    env = {
        "FORWARDER_BROKER_URL": rabbitmq.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_CONCURRENCY": str(SLOTS),
        **model_server.env,
    }
    sender = producer(broker_url=rabbitmq.url, backend=valkey.url)
    dead = f"{queue_name}.dead"
    with Connection(rabbitmq.url) as connection:
        channel: Any = connection.channel()
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(dead, durable=True, auto_delete=False, arguments=full)
        started = worker(pool=pool, env=env)
        started.wait_ready()
        for number in range(UNREADABLE):
            junk = Message(f"junk {number}", content_type="application/json")
            channel.basic_publish(junk, exchange="", routing_key=queue_name)
        started.wait_for_log("dead_letters_refused")
        assert total(sender.send({"args": {"id": "a", "numbers": [1]}})) == 1
        assert told(started, "dead_letters_refused") == 1
        assert told(started, "message_refused") <= UNREADABLE
        channel.queue_delete(dead)
        # Gone with it are the one that was in it and, confirmed all the same, those on their way into it.
        least = UNREADABLE - 1 - SLOTS
        wait_until(lambda: _letters(connection, dead) >= least, "they are put aside once they can be")
        started.wait_for_log("dead_letters_taken_again")
        assert started.stop() == 0


def _letters(connection: Connection, queue: str) -> int:
    channel: Any = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
    finally:
        channel.close()


@pytest.mark.parametrize("pool", POOLS)
def test_without_the_right_to_put_messages_aside_on_redis_tasks_go_on_and_memory_stays(
    pool: str,
    worker: StartWorker,
    valkey: Valkey,
    model_server: ModelServer,
    producer: MakeProducer,
    queue_name: str,
) -> None:
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    with redis.Redis.from_url(valkey.url) as server:
        server.acl_setuser(
            queue_name,
            enabled=True,
            passwords=["+secret"],
            categories=["+@all"],
            channels=["*"],
            keys=[queue_name, f"{queue_name}\x06\x16*", "forwarder:*", "_kombu*", "unacked*", "*pidbox*"],
        )
        env = {
            "FORWARDER_BROKER_URL": f"redis://{queue_name}:secret@{urlsplit(valkey.url).netloc}",
            "FORWARDER_RESULT_BACKEND": valkey.url,
            "FORWARDER_CONCURRENCY": "4",
            "FORWARDER_MEMORY_LIMIT_MB": str(MEMORY_LIMIT_MB),
            **model_server.env,
        }
        started = worker(pool=pool, env=env)
        started.wait_ready()
        before = psutil.Process(started.pid).memory_info().rss
        for number in range(FLOOD):
            server.lpush(queue_name, f"no JSON {number} ".ljust(FILLER_BYTES, "x"))
        assert total(sender.send({"args": {"id": "a", "numbers": [1]}})) == 1
        wait_until(lambda: server.llen(queue_name) == 0)
        grown = psutil.Process(started.pid).memory_info().rss - before
        assert grown < FLOOD * FILLER_BYTES / 2
        assert told(started, "dead_letters_refused") == 1
        started.stop()
        server.acl_deluser(queue_name)
        held = server.hlen(f"forwarder:{{{queue_name}}}:unacked") + server.llen(f"{queue_name}\x06\x169")
        assert held == FLOOD, "none is lost"
