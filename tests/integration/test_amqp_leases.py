"""Leases, counts and dead letters on a real RabbitMQ, without a worker around them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from forwarder.brokers.amqp.copies import Copies
from forwarder.brokers.amqp.leases import AmqpLeases
from forwarder.brokers.amqp.transport import AdoptedQueue
from forwarder.brokers.dead_letters import DEATH_HEADER, DELIVERIES_HEADER, NoSuchQueue
from forwarder.brokers.deliveries import Death, Delivery
from forwarder.testing.rabbitmq import RabbitMQ
from tests.integration.scenes import PATIENCE_S, wait_until

TRANSPORT = "forwarder.brokers.amqp.transport:AMQPTransport"
DEATH = Death(code="dead_lettered", error="too often", queue="q", deliveries=6, at="2030-01-01T00:00:00")
BODY = b'[[{"args": 1}], {}, {}]'


class Peer:
    """What a worker's main process does with messages: recount, then take."""

    def __init__(self, url: str, queue: str) -> None:
        self.connection = Connection(url, transport=TRANSPORT, heartbeat=10)
        self.leases = AmqpLeases(copies=Copies(connect=lambda: Connection(url, transport=TRANSPORT)))
        self.deliveries: list[Delivery] = []
        self.recounted = 0
        self._queue = queue
        self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leases.close()
        self.connection.release()

    def connect(self) -> None:
        """Consume (again)."""
        self.connection.ensure_connection(max_retries=1)
        channel: Any = self.connection.channel()
        channel.basic_qos(0, 10, False)
        queue = AdoptedQueue(self._queue, routing_key=self._queue)
        self._consumer = self.connection.Consumer([queue], channel=channel, on_message=self._on_message)
        self._consumer.consume()

    def stop(self) -> None:
        """Stop as a worker does: cancel the consumer, hand back what is held, close the connection."""
        self._consumer.cancel()
        self.leases.hand_back(self.deliveries)
        self.deliveries.clear()
        self.connection.release()

    def sent_is_read(self) -> None:
        """Wait for the broker: an ack that it has not read when a connection breaks leaves a second copy."""
        channel: Any = self._consumer.channel
        channel.basic_qos(0, 10, False)

    def lose_connection(self) -> None:
        """Break the connection as a network does, and let go of what was held."""
        self.leases.disconnected(self.deliveries)
        self.deliveries.clear()
        self.connection.collect()

    def take(self, number: int = 1) -> list[Delivery]:
        """Receive until ``number`` are held."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.deliveries) < number:
            assert time.monotonic() < deadline, "no delivery"
            self._drain(0.2)
        return self.deliveries[-number:]

    def takes_nothing(self) -> bool:
        held = len(self.deliveries)
        self._drain(0.3)
        return len(self.deliveries) == held

    def _drain(self, timeout_s: float) -> None:
        try:
            self.connection.drain_events(timeout=timeout_s)
        except TimeoutError:
            return

    def _on_message(self, message: Any) -> None:
        if self.leases.recount(message):
            self.recounted += 1
        else:
            self.deliveries.append(self.leases.receive(message))


@pytest.fixture(params=["classic", "quorum"])
def queue(request: pytest.FixtureRequest, rabbitmq: RabbitMQ, queue_name: str) -> str:
    with Connection(rabbitmq.url) as connection:
        arguments = {"x-queue-type": request.param}
        Queue(queue_name, routing_key=queue_name, queue_arguments=arguments)(connection.channel()).declare()
    return queue_name


@pytest.fixture
def peer(rabbitmq: RabbitMQ, queue: str) -> Iterator[Callable[[], Peer]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Peer(rabbitmq.url, queue))


@pytest.fixture
def send(rabbitmq: RabbitMQ, queue: str) -> Callable[..., None]:
    def publish(task_id: str = "t1", **options: Any) -> None:
        with Connection(rabbitmq.url, transport_options={"confirm_publish": True}) as connection:
            connection.Producer().publish(
                BODY,
                routing_key=queue,
                headers={"id": task_id, "task": "forwarder.forward", "nested": {"a": [1, None]}},
                content_type="application/json",
                content_encoding="utf-8",
                correlation_id=task_id,
                **options,
            )

    return publish


def waiting(rabbitmq: RabbitMQ, queue: str) -> int:
    with Connection(rabbitmq.url) as connection:
        channel: Any = connection.channel()
        return int(channel.queue_declare(queue, passive=True).message_count)


def test_what_a_dead_worker_held_comes_to_another_with_a_raised_count(
    peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    first, second = peer(), peer()
    send()
    for expected in (1, 2, 3):
        (delivery,) = first.take()
        assert delivery.number == expected
        assert delivery.redelivered is (expected > 1)
        first.sent_is_read()
        first.connection.collect()  # nothing is remembered: the process is gone
        first, second = second, peer()
    assert first.take()[0].number == 4


def test_the_count_is_on_the_broker_before_the_task_runs(
    peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    first = peer()
    send()
    first.take()
    first.connection.collect()
    second = peer()
    (delivery,) = second.take()
    assert second.recounted == 1
    assert delivery.message.headers[DELIVERIES_HEADER] == 1, "it is the copy that is run"


def test_what_comes_back_after_a_lost_connection_is_counted_and_its_task_not_blamed(
    peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    worker = peer()
    send()
    for number in (1, 2, 3):
        (delivery,) = worker.take()
        assert delivery.number == number
        worker.sent_is_read()
        worker.lose_connection()
        assert not delivery.blamed
        assert not worker.leases.ack(delivery)
        worker.connect()
    assert worker.take()[0].redelivered is True


def test_an_acked_message_is_gone(
    peer: Callable[[], Peer], send: Callable[..., None], rabbitmq: RabbitMQ, queue: str
) -> None:
    worker = peer()
    send()
    (delivery,) = worker.take()
    assert worker.leases.renew([delivery]) == []
    assert worker.leases.ack(delivery)
    worker.lose_connection()
    worker.connect()
    assert worker.takes_nothing()


def test_a_requeued_message_counts(peer: Callable[[], Peer], send: Callable[..., None]) -> None:
    worker = peer()
    send()
    assert worker.leases.requeue(worker.take()[0])
    worker.deliveries.clear()
    assert worker.take()[0].number == 2


def test_a_message_that_is_handed_back_does_not_count_and_keeps_all_else(
    peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    first = peer()
    send(priority=3, expiration=600, reply_to="somewhere")
    (before,) = first.take()
    properties, headers = dict(before.message.properties), dict(before.message.headers)
    before.message.headers["forwarder_dead"] = 7  # what Celery's request does to the message's own
    first.stop()
    (after,) = peer().take()
    assert after.number == 1
    assert after.redelivered is True, "it may have begun"
    assert after.message.body == before.message.body
    assert after.message.headers == {**headers, DELIVERIES_HEADER: 0}
    del properties["application_headers"], after.message.properties["application_headers"]
    assert after.message.properties == properties


def test_a_compressed_body_is_copied_as_it_came(peer: Callable[[], Peer], send: Callable[..., None]) -> None:
    first = peer()
    send(compression="gzip")
    first.take()
    first.stop()
    (delivery,) = peer().take()
    assert json.loads(delivery.message.body) == json.loads(BODY)


def test_a_message_of_a_lost_connection_is_settled_nowhere(
    peer: Callable[[], Peer], send: Callable[..., None], rabbitmq: RabbitMQ, queue: str
) -> None:
    worker = peer()
    send()
    (delivery,) = worker.take()
    worker.connection.collect()
    assert worker.leases.renew([delivery]) == [delivery]
    assert not worker.leases.ack(delivery)
    assert not worker.leases.requeue(delivery)
    assert not worker.leases.put_aside(delivery, DEATH)
    worker.leases.hand_back([delivery])
    wait_until(lambda: waiting(rabbitmq, queue) == 1, "the broker has it")
    time.sleep(0.2)
    assert waiting(rabbitmq, queue) == 1, "once"


def test_a_channel_that_the_broker_closed_and_py_amqp_opened_again_settles_nothing_older(
    peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    worker = peer()
    send()
    (delivery,) = worker.take()
    channel = delivery.receipt.channel
    channel.basic_ack(4711)
    with pytest.raises(Exception, match="PRECONDITION_FAILED"):
        worker.connection.drain_events(timeout=PATIENCE_S)
    assert channel.is_open
    assert worker.leases.renew([delivery]) == [delivery]
    assert not worker.leases.ack(delivery)
    worker.lose_connection()
    worker.connect()
    assert worker.take()[0].number == 2, "a broker that closes the channel had a reason: it counts"


def test_a_message_that_is_put_aside_waits_in_the_dead_letters_with_its_reason(
    peer: Callable[[], Peer], send: Callable[..., None], rabbitmq: RabbitMQ, queue: str
) -> None:
    worker = peer()
    for task_id in ("t1", "t2"):
        send(task_id, expiration=600)
    for delivery in worker.take(2):
        assert worker.leases.put_aside(delivery, DEATH)
    with Connection(rabbitmq.url) as connection:
        channel: Any = connection.channel()
        letters = [channel.basic_get(f"{queue}.dead", no_ack=True) for _ in range(2)]
    assert [letter.headers["id"] for letter in letters] == ["t1", "t2"]
    assert letters[0].headers[DEATH_HEADER]["code"] == "dead_lettered"
    assert letters[0].headers["nested"] == {"a": [1, None]}
    assert "expiration" not in letters[0].properties
    worker.lose_connection()
    worker.connect()
    assert worker.takes_nothing()


def test_a_copy_for_a_queue_that_is_gone_is_refused_and_the_next_one_works(
    rabbitmq: RabbitMQ, queue: str, peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    send()
    raw = peer().take()[0].receipt.raw
    copies = Copies(connect=lambda: Connection(rabbitmq.url, transport=TRANSPORT))
    with pytest.raises(NoSuchQueue):
        copies.publish("nowhere-at-all", raw, headers={})
    copies.publish(queue, raw, headers={"id": "t2"})
    copies.close()


def test_an_idle_connection_for_copies_that_died_is_replaced(
    rabbitmq: RabbitMQ, queue: str, peer: Callable[[], Peer], send: Callable[..., None]
) -> None:
    send()
    worker = peer()
    raw = worker.take()[0].receipt.raw
    made: list[Connection] = []

    def connect() -> Connection:
        made.append(Connection(rabbitmq.url, transport=TRANSPORT))
        return made[-1]

    copies = Copies(connect=connect)
    copies.publish(queue, raw, headers={"id": "t2"})
    made[0].connection.sock.close()
    copies.publish(queue, raw, headers={"id": "t3"})
    assert len(made) == 2
    assert [delivery.task_id for delivery in worker.take(3)] == ["t1", "t2", "t3"]
    copies.close()


def test_a_task_is_run_all_the_same_where_no_copy_can_be_published(
    peer: Callable[[], Peer], send: Callable[..., None], nobody: str
) -> None:
    first = peer()
    send()
    first.take()
    first.connection.collect()
    second = peer()
    url = f"amqp://{nobody}//"
    second.leases = AmqpLeases(copies=Copies(connect=lambda: Connection(url, transport=TRANSPORT)))
    (delivery,) = second.take()
    assert delivery.number == 2
    with pytest.raises((OSError, OperationalError)):
        second.leases.hand_back([delivery])
    assert second.leases.ack(delivery)
