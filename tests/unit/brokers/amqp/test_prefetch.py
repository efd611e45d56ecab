"""How many messages RabbitMQ may push: by slots, by bytes, and in spite of earlier consumers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.amqp.prefetch import Prefetch
from forwarder.brokers.leases import Delivery, LeaseBook, Settlement
from forwarder.scaling.admission import Admission

BUDGET = 1000


class Consumer:
    """Notes what it was asked; ``arriving`` is called while it is cancelled."""

    def __init__(self) -> None:
        self.queues = ["q"]
        self.counts: list[int] = []
        self.arriving: Callable[[], object] = lambda: None
        self.consuming = True
        self.fails = False

    def qos(self, *, prefetch_count: int) -> None:
        self.counts.append(prefetch_count)

    def cancel(self) -> None:
        self.consuming = False
        self.arriving()

    def consume(self) -> None:
        if self.fails:
            raise TimeoutError
        self.consuming = True


class Scene:
    def __init__(self, *, slots: int = 10, message_bytes: int = 1) -> None:
        leases: Any = SimpleNamespace(receive=self.delivery, ack=lambda delivery: True)
        self.book = LeaseBook(lambda: leases)
        self.admission = Admission(slots_max=slots, bytes_max=BUDGET)
        self.book.admission = self.admission
        self.prefetch = Prefetch(book=self.book, slots=lambda: slots, message_bytes=message_bytes)
        self.consumer = Consumer()
        self.prefetch.begin(self.consumer)

    @staticmethod
    def delivery(message: Any) -> Delivery:
        return Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message)

    def receive(self, size: int = 1) -> Delivery:
        delivery = self.book.open(SimpleNamespace(body=b"x" * size))
        self.prefetch.received(size)
        return delivery

    def end(self, delivery: Delivery) -> None:
        self.book.settle(delivery, Settlement.ACK)

    def adjust(self) -> list[int]:
        self.prefetch.adjust(self.consumer)
        return self.consumer.counts


def test_small_messages_get_every_slot_and_the_consumer_stays_as_it_is() -> None:
    scene = Scene()
    held = [scene.receive() for _ in range(10)]
    scene.end(held[0])
    assert scene.adjust() == [10]


@pytest.mark.parametrize(("message_bytes", "count"), [(1, 10), (200, 5), (1000, 1), (10**6, 1)])
def test_until_sizes_are_known_as_many_are_asked_for_as_fit_at_their_largest(
    message_bytes: int, count: int
) -> None:
    assert Scene(message_bytes=message_bytes).consumer.counts == [count]


def test_once_sizes_are_known_the_count_follows() -> None:
    scene = Scene(message_bytes=10**6)
    scene.receive(size=10)
    assert scene.adjust() == [1, 9], "one is with the first consumer"


def test_what_the_earlier_consumer_was_given_takes_slots_until_it_ends() -> None:
    scene = Scene(message_bytes=10**6)
    first = scene.receive(size=10)
    assert scene.adjust()[-1] == 9
    scene.end(first)
    assert scene.adjust()[-1] == 10


def test_slots_that_close_lower_the_count_and_slots_that_open_raise_it() -> None:
    scene = Scene()
    scene.admission.slots = 4
    assert scene.adjust()[-1] == 4
    scene.admission.slots = 8
    assert scene.adjust()[-1] == 8


def test_past_the_budget_nothing_is_taken_and_it_goes_on_below() -> None:
    scene = Scene()
    held = [scene.receive(size=300) for _ in range(4)]
    assert scene.prefetch.exceeded
    scene.adjust()
    assert (scene.consumer.consuming, scene.prefetch.exceeded) == (False, False)
    for delivery in held:
        scene.end(delivery)
    assert scene.adjust()[-1] == 3
    assert scene.consumer.consuming


def test_one_message_larger_than_the_budget_is_taken_alone() -> None:
    scene = Scene()
    large = scene.receive(size=5000)
    scene.adjust()
    assert not scene.consumer.consuming
    scene.end(large)
    assert scene.adjust()[-1] == 1
    assert scene.consumer.consuming


def test_what_arrives_while_the_consumer_is_cancelled_is_the_earlier_ones() -> None:
    scene = Scene(message_bytes=500)
    scene.receive(size=10)

    def arrive() -> None:
        scene.receive(size=10)

    scene.consumer.arriving = arrive
    assert scene.adjust() == [2, 8]


def test_sizes_that_move_a_little_are_no_reason_for_a_new_consumer() -> None:
    scene = Scene(slots=100, message_bytes=32)
    for size in (32, 16, 16, 32, 16):
        scene.end(scene.receive(size=size))
        scene.adjust()
    assert scene.consumer.counts == [31]


def test_sizes_that_shrink_for_good_are_one() -> None:
    scene = Scene(slots=100)
    for size in (320, *[16] * 100):
        scene.end(scene.receive(size=size))
        scene.adjust()
    assert scene.consumer.counts[1] == 3
    assert scene.consumer.counts[-1] >= 25
    assert len(scene.consumer.counts) < 15, "in steps of a quarter"


def test_a_consumer_that_could_not_be_started_is_started_the_next_time() -> None:
    scene = Scene()
    scene.admission.slots = 4
    scene.consumer.fails = True
    with pytest.raises(TimeoutError):
        scene.adjust()
    scene.consumer.fails = False
    scene.adjust()
    assert scene.consumer.consuming


def test_each_queue_gets_its_part_of_the_bytes() -> None:
    scene = Scene(message_bytes=100)
    scene.consumer.queues = ["q", "r"]
    scene.prefetch.begin(scene.consumer)
    assert scene.consumer.counts == [10, 5]
