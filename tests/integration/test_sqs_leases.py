"""Leases, counts and dead letters against a real SQS endpoint: our classes first, then the whole worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kombu
import pytest

from forwarder.brokers.deliveries import Death, Delivery, Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.sqs.dead_letters import SqsDeadLetters
from forwarder.brokers.sqs.leases import SqsLeases
from forwarder.brokers.sqs.transport import SQSTransport
from forwarder.testing import aws_resources
from forwarder.testing.aws import ExistingCloud, LocalStack, Moto
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from tests.integration.scenes import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer

Cloud = Moto | LocalStack | ExistingCloud
DEATH = Death(code="dead_lettered", error="too often", queue="", deliveries=6, at="2026-01-01T00:00:00Z")


@pytest.fixture(params=["moto", "localstack"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    stack: Cloud = request.getfixturevalue(request.param)
    return stack


class Consumed:
    """One consuming process: its book, its leases and what it has received."""

    def __init__(
        self, cloud: Cloud, *, queue: str, url: str, visibility_timeout_s: int, prefetch: int
    ) -> None:
        self.client = aws_resources.client(cloud.env, "sqs")
        self.leases = SqsLeases(
            client=lambda: self.client,
            poller=lambda: self.client,
            queue=queue,
            queue_url=url,
            visibility_timeout_s=visibility_timeout_s,
            wait_s=1,
        )
        self.book = LeaseBook(lambda: self.leases)
        options = {
            "book": self.book,
            "predefined_queues": {queue: {"url": url}},
            "region": cloud.env["AWS_REGION"],
        }
        self.connection = kombu.Connection("sqs://", transport=SQSTransport, transport_options=options)
        self.consumer = kombu.Consumer(
            self.connection.default_channel,
            [kombu.Queue(queue, routing_key=queue)],
            on_message=lambda message: self.deliveries.append(self.book.open(message)),
            prefetch_count=prefetch,
        )
        self.deliveries: list[Delivery] = []
        self.consumer.consume()

    def take(self, number: int) -> list[Delivery]:
        """Block until so many have come, and return them all."""
        self.drain(lambda: len(self.deliveries) >= number, PATIENCE_S)
        assert len(self.deliveries) >= number
        return self.deliveries

    def drain(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Receive until ``done``, or for ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline:
            try:
                self.connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue

    def stays_empty(self, seconds: float) -> bool:
        """Return whether nothing more comes for so long."""
        before = len(self.deliveries)
        self.drain(lambda: len(self.deliveries) > before, seconds)
        return len(self.deliveries) == before

    def close(self) -> None:
        self.leases.close()
        self.connection.close()


@dataclass
class Scene:
    """A queue with a stock producer, and consumers on it."""

    cloud: Cloud
    queue: str
    url: str
    producer: Producer
    consumers: list[Consumed]

    def consume(self, *, visibility_timeout_s: int = 30, prefetch: int = 10) -> Consumed:
        consumed = Consumed(
            self.cloud,
            queue=self.queue,
            url=self.url,
            visibility_timeout_s=visibility_timeout_s,
            prefetch=prefetch,
        )
        self.consumers.append(consumed)
        return consumed

    def depth(self) -> tuple[int, int]:
        """Return how many messages wait and how many are in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(answer[names[0]]), int(answer[names[1]])

    @property
    def sqs(self) -> Any:
        return aws_resources.client(self.cloud.env, "sqs")

    def dead_letters(self) -> SqsDeadLetters:
        return SqsDeadLetters(client=lambda: self.sqs, queue=self.queue, queue_url=self.url)


@pytest.fixture
def make_scene(cloud: Cloud, queue_name: str, producer: MakeProducer) -> Iterator[Callable[..., Scene]]:
    consumers: list[Consumed] = []

    def make(*, suffix: str = "", **attributes: str) -> Scene:
        queue = queue_name + suffix
        url = aws_resources.create_queue(cloud.env, queue, **attributes)
        conf = sqs_conf(cloud.env, queue=queue, url=url)
        sender = producer(broker_url=sqs_broker_url(cloud.env), backend="cache+memory://", conf=conf)
        sender.queue = queue
        return Scene(cloud, queue, url, sender, consumers)

    yield make
    for consumed in consumers:
        consumed.close()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()


def test_a_renewed_lease_keeps_a_task_single_for_longer_than_the_visibility_timeout(scene: Scene) -> None:
    scene.producer.send({"args": 1})
    held = scene.consume(visibility_timeout_s=4)
    [delivery] = held.take(1)
    other = scene.consume(visibility_timeout_s=4)
    started = time.monotonic()
    while time.monotonic() < started + 9:
        assert held.leases.renew(held.book.leased()) == []
        assert other.stays_empty(0.5)
    held.book.settle(delivery, Settlement.ACK)
    assert other.stays_empty(1)
    wait_until(lambda: scene.depth() == (0, 0))


def test_what_a_dead_process_held_comes_to_a_peer_with_a_higher_number(scene: Scene) -> None:
    scene.producer.send({"args": 1})
    dead = scene.consume(visibility_timeout_s=2)
    [first] = dead.take(1)
    dead.consumer.cancel()
    peer = scene.consume(visibility_timeout_s=2)
    [second] = peer.take(1)
    assert (first.number, second.number) == (1, 2)
    assert list(dead.leases.renew([first])) == [first]
    assert dead.leases.ack(first) is False
    peer.book.settle(second, Settlement.ACK)
    assert peer.stays_empty(3)


def test_handing_back_leaves_the_number_as_it_is_and_requeueing_raises_it(scene: Scene) -> None:
    result = scene.producer.send({"args": 1})
    consumed = scene.consume()
    consumed.take(1)
    for settlement, number in [
        (Settlement.HAND_BACK, 1),
        (Settlement.REQUEUE, 2),
        (Settlement.HAND_BACK, 2),
        (Settlement.HAND_BACK, 2),
        (Settlement.REQUEUE, 3),
    ]:
        consumed.book.settle(consumed.deliveries[-1], settlement)
        count = len(consumed.deliveries) + 1
        delivery = consumed.take(count)[-1]
        assert (delivery.number, delivery.task_id) == (number, result.id)
    consumed.book.settle(consumed.deliveries[-1], Settlement.ACK)
    wait_until(lambda: scene.depth() == (0, 0))


def test_many_are_handed_back_at_once(scene: Scene) -> None:
    ids = {scene.producer.send({"args": n}).id for n in range(15)}
    consumed = scene.consume(prefetch=20)
    consumed.take(15)
    consumed.consumer.cancel()
    consumed.book.hand_back(consumed.book.held())
    consumed.leases.close()
    assert scene.depth() == (15, 0)
    peer = scene.consume(prefetch=20)
    assert {delivery.task_id for delivery in peer.take(15)} == ids
    assert {delivery.number for delivery in peer.deliveries} == {1}


def test_a_fifo_queue_keeps_the_group_when_a_task_is_handed_back(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(suffix=".fifo", FifoQueue="true")
    scene.producer.send({"args": 1}, MessageGroupId="tenant")
    consumed = scene.consume()
    [first] = consumed.take(1)
    consumed.book.settle(first, Settlement.HAND_BACK)
    _, second = consumed.take(2)
    assert second.number == 1
    assert second.receipt["Attributes"]["MessageGroupId"] == "tenant"
    consumed.book.settle(second, Settlement.ACK)


def dead(scene: Scene) -> Death:
    return Death(code=DEATH.code, error=DEATH.error, queue=scene.queue, deliveries=6, at=DEATH.at)


def nothing(_letter: Any) -> None: ...


@pytest.mark.parametrize("redrive", [False, True])
def test_what_is_put_aside_can_be_listed_shown_requeued_and_purged(
    make_scene: Callable[..., Scene], redrive: bool, cloud: Cloud, queue_name: str
) -> None:
    attributes = {}
    if redrive:
        url = aws_resources.create_queue(cloud.env, f"{queue_name}-graves")
        sqs = aws_resources.client(cloud.env, "sqs")
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = {"deadLetterTargetArn": arn, "maxReceiveCount": "9"}
        attributes["RedrivePolicy"] = json.dumps(policy)
    scene = make_scene(**attributes)
    letters = scene.dead_letters()
    assert letters.list(10) == []
    results = [scene.producer.send({"args": n}) for n in range(12)]
    scene.sqs.send_message(QueueUrl=scene.url, MessageBody="not a task")
    consumed = scene.consume(prefetch=20)
    for delivery in list(consumed.take(13)):
        consumed.book.settle(delivery, Settlement.PUT_ASIDE, dead(scene))
    wait_until(lambda: scene.depth() == (0, 0))

    assert len(letters.list(5)) == 5
    found = letters.list(100)
    assert {letter.task_id for letter in found} == {result.id for result in results} | {None}
    assert {(letter.code, letter.deliveries, letter.queue) for letter in found} == {
        ("dead_lettered", 6, scene.queue)
    }
    opened = letters.show(results[3].id)
    assert json.loads(opened.body)[0] == [{"args": 3}]
    assert opened.headers["task"] == opened.letter.task == "forwarder.forward"

    before: list[str] = []
    went = letters.requeue({results[3].id}, lambda letter: before.append(letter.id))
    assert before == [letter.id for letter in went] == [results[3].id]
    again = consumed.take(14)[-1]
    assert (again.task_id, again.number) == (results[3].id, 1)
    consumed.book.settle(again, Settlement.ACK)

    assert [letter.id for letter in letters.purge({results[4].id})] == [results[4].id]
    assert len(letters.purge(None)) == 11
    assert letters.list(100) == []
    names = [url.rpartition("/")[2] for url in scene.sqs.list_queues(QueueNamePrefix=queue_name)["QueueUrls"]]
    assert (f"{queue_name}-dead" in names) is not redrive


def test_letters_of_another_queue_in_a_shared_redrive_target_are_left_alone(scene: Scene) -> None:
    scene.producer.send({"args": 1})
    consumed = scene.consume()
    other = Death(code="x", error="", queue="another", deliveries=1, at=DEATH.at)
    consumed.book.settle(consumed.take(1)[0], Settlement.PUT_ASIDE, other)
    letters = scene.dead_letters()
    assert letters.list(10) == []
    assert letters.purge(None) == []
    assert letters.requeue(None, nothing) == []


def test_under_load_calls_are_batched(scene: Scene) -> None:
    """200 tasks, 20 slots, each task 50 ms: receives and deletes together, without the stock producer's."""
    tasks, slots = 200, 20
    for number in range(tasks):
        scene.producer.send({"args": number})
    consumed = scene.consume(prefetch=slots)
    calls: list[str] = []
    consumed.client.meta.events.register(
        "before-call.sqs", lambda model, **_: calls.append(model.name), unique_id="count"
    )
    due: list[tuple[float, Delivery]] = []
    finished = 0
    deadline = time.monotonic() + 60
    while finished < tasks and time.monotonic() < deadline:
        with suppress(TimeoutError):
            consumed.connection.drain_events(timeout=0.005)
        known = {id(delivery) for _, delivery in due}
        due += [
            (time.monotonic() + 0.05, delivery)
            for delivery in consumed.book.held()
            if id(delivery) not in known
        ]
        assert len(consumed.book) <= slots
        for at_s, delivery in due:
            if at_s <= time.monotonic():
                consumed.book.settle(delivery, Settlement.ACK)
                finished += 1
        due = [(at_s, delivery) for at_s, delivery in due if at_s > time.monotonic()]
    consumed.close()
    assert finished == tasks
    assert scene.depth() == (0, 0)
    per_task = len(calls) / tasks
    print(f"AWS calls a task: {per_task}")  # noqa: T201 - the figure is the point
    assert per_task <= 0.6
