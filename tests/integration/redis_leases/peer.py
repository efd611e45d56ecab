"""One worker's Redis side, and the items that it is given."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from kombu import Connection, Queue

from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.redis.leases import RedisLeases
from forwarder.brokers.redis.transport import broker_client
from tests.integration.scenes import PATIENCE_S

TRANSPORT = "forwarder.brokers.redis.transport:RedisTransport"
VISIBILITY_S = 2.0


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

    def drain(self, number: int, timeout_s: float = PATIENCE_S) -> list[Delivery]:
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

    def begin(self) -> None:
        """Take nothing: the server knows the script, whatever it was asked before, and who waits next."""
        for _ in range(2):  # a server that does not know the script only says so
            self.ask(wait=False)
            assert self.channel._read_reply() == []

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


def take_over(peer: Peer) -> int:
    """Return how many the first round gives back that gives back any; those before it wait for others."""
    end = time.monotonic() + PATIENCE_S
    while not (moved := peer.leases.take_over()) and time.monotonic() < end:
        peer.leases.renew([])
        time.sleep(VISIBILITY_S / 8)
    return moved


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
