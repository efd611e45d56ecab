"""How many messages RabbitMQ may push: by slots, by bytes, and with as few new consumers as can be."""

from __future__ import annotations

import heapq
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from forwarder.brokers.amqp.prefetch import CONSUMERS_MAX, LOOKS, Prefetch, beside
from forwarder.brokers.deliveries import Delivery, Settlement
from forwarder.brokers.leases import LeaseBook
from forwarder.scaling.admission import EARLY_BYTES, Admission

BUDGET = 1000
#: The largest that a message may have, in proportion to it.
UNKNOWN = 300


class FakeConsumer:
    """A consumer on the broker: it is given messages up to its count while it is consuming."""

    def __init__(self, broker: Broker) -> None:
        self.queues = [SimpleNamespace(name="q")]
        self.tag_prefix = ""
        self.prefetch_count = self.unacked = 0
        self.consuming = self.fails = False
        self.broker = broker
        self._tags = count(1)

    def qos(self, *, prefetch_count: int) -> None:
        self.prefetch_count = prefetch_count

    def consume(self) -> None:
        if self.fails:
            raise TimeoutError
        self.tag, self.unacked, self.consuming = f"{self.tag_prefix}{next(self._tags)}", 0, True
        self.broker.started += 1

    def cancel(self) -> None:
        self.consuming = False
        self.broker.cancelled += 1


class Broker:
    """A broker with an endless backlog, and a worker of so many slots; time is counted, not spent."""

    def __init__(self, *, slots: int = 10, budget: int = BUDGET, unknown: int = UNKNOWN) -> None:
        self.started = self.cancelled = 0
        leases: Any = SimpleNamespace(receive=self._delivery, ack=lambda delivery: True)
        self.book = LeaseBook(lambda: leases)
        self.admission = self.book.admission = Admission(slots_max=slots, bytes_max=budget)
        self.slots = slots
        self.size = 1
        self.held_bytes = self.held_most = 0
        self.consumer = FakeConsumer(self)
        self.consumers = [self.consumer]
        self.owners: dict[int, tuple[FakeConsumer, str]] = {}
        self.prefetch = Prefetch(
            book=self.book, slots=lambda: self.slots, message_bytes=unknown, beside=self._beside
        )
        self.prefetch.begin(self.consumer)
        self.consumer.consume()

    def push(self) -> list[Delivery]:
        """Deliver what the consumers may be given; over the budget the worker adjusts, as it would."""
        pushed = []
        for consumer in self.consumers:
            while consumer.consuming and consumer.unacked < consumer.prefetch_count:
                consumer.unacked += 1
                info = {"consumer_tag": consumer.tag}
                delivery = self.book.open(SimpleNamespace(body=b"x" * self.size, delivery_info=info))
                self.owners[id(delivery)] = (consumer, consumer.tag)
                self.prefetch.received(self.size)
                pushed.append(delivery)
        self.held_most = max(self.held_most, len(self.book))
        self.held_bytes = max(self.held_bytes, BUDGET - self.book.bytes_left())
        if self.prefetch.exceeded:
            self.adjust()
        return pushed

    def end(self, delivery: Delivery) -> None:
        consumer, tag = self.owners.pop(id(delivery))
        if tag == consumer.tag:
            consumer.unacked -= 1
        self.book.settle(delivery, Settlement.ACK)

    def end_all(self) -> None:
        for delivery in self.book.held():
            self.end(delivery)

    def adjust(self) -> None:
        self.prefetch.adjust(self.consumer)

    def settle(self) -> int:
        """Let a few seconds pass; return how many messages are held then."""
        for _ in range(8):
            self.push()
            self.adjust()
        self.push()
        return len(self.book)

    def work(self, *, task_s: float, seconds: int) -> float:
        """Run tasks of that length; return the share of the slots that was in use."""
        ends = [(0.0, number, delivery) for number, delivery in enumerate(self.book.held())]
        numbers = count(len(ends))
        used_s = 0.0
        for tick in range(seconds * 20):
            now = tick / 20
            while ends and ends[0][0] <= now:
                self.end(heapq.heappop(ends)[2])
            if tick % 20 == 19:
                self.adjust()
            for delivery in self.push():
                number = next(numbers)
                spread = 0.9 + 0.2 * (number * 7919 % 100) / 100
                heapq.heappush(ends, (now + task_s * spread, number, delivery))
            used_s += min(len(self.book), self.slots) / 20
        return used_s / seconds / self.slots

    def _beside(self, consumer: Any) -> Any:
        self.consumers.append(FakeConsumer(self))
        self.consumers[-1].queues = consumer.queues
        return self.consumers[-1]

    @staticmethod
    def _delivery(message: Any) -> Delivery:
        return Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message)


@pytest.mark.parametrize("task_s", [0.2, 1.0, 2.0, 5.0, 15.0])
def test_small_messages_fill_the_slots_and_no_consumer_is_ever_cancelled(task_s: float) -> None:
    broker = Broker(slots=50)
    assert broker.work(task_s=task_s, seconds=120) >= 0.98
    assert (broker.cancelled, broker.started, broker.held_most) == (0, 2, 50)


@pytest.mark.parametrize(("unknown", "number"), [(1, 10), (200, 5), (1000, 1), (10**6, 1)])
def test_until_sizes_are_known_as_many_come_as_fit_at_their_largest(unknown: int, number: int) -> None:
    broker = Broker(unknown=unknown)
    broker.push()
    assert len(broker.book) == number


@pytest.mark.parametrize("size", [90, 100, 300, 1000, 5000])
def test_large_messages_stay_within_the_budget_or_come_one_by_one_and_nothing_is_cancelled(size: int) -> None:
    broker = Broker(slots=50, unknown=5000)
    broker.size = size
    broker.work(task_s=1.0, seconds=60)
    assert broker.held_bytes <= max(BUDGET, size)
    assert broker.cancelled == 0
    assert broker.held_most >= 0.7 * BUDGET // size


def test_messages_that_grow_exceed_the_budget_by_one_count_and_no_more_come_until_they_end() -> None:
    broker = Broker()
    broker.settle()
    broker.end_all()
    broker.size = 300
    assert broker.settle() == 10
    for delivery in broker.book.held()[:8]:
        broker.end(delivery)
        broker.push()
    assert len(broker.book) == 2
    assert broker.cancelled == 2
    broker.end_all()
    assert broker.settle() == 3


def test_a_budget_that_is_passed_by_a_little_is_passed_too() -> None:
    broker = Broker(unknown=100)
    broker.size = 100
    broker.push()
    broker.admission.hold_response(1, 60.0)
    assert broker.prefetch.exceeded
    broker.adjust()
    assert broker.cancelled == 1


def test_messages_that_shrink_are_more_again() -> None:
    broker = Broker(unknown=5000)
    broker.size = 500
    assert broker.settle() == 2
    broker.size = 10
    broker.work(task_s=0.2, seconds=60)
    assert broker.settle() >= 8
    assert broker.cancelled == 0


def test_slots_that_close_and_open_are_followed_though_all_are_busy_with_one_restart_at_most() -> None:
    broker = Broker(unknown=1)
    broker.settle()
    for slots in (4, 10, 5, 10):
        cancelled, alive = broker.cancelled, sum(each.consuming for each in broker.consumers)
        broker.admission.cap = slots
        broker.work(task_s=2.0, seconds=20)
        assert broker.settle() == slots
        assert broker.cancelled - cancelled <= (alive if slots < 10 else 0)


def test_a_slot_that_came_for_a_while_goes_without_the_others() -> None:
    broker = Broker(budget=2 * EARLY_BYTES)
    broker.settle()
    cancelled = broker.cancelled
    for _ in range(5):
        broker.slots = 11  # Celery's own way with a task that has an ETA
        assert broker.settle() == 11
        broker.slots = 10
        broker.adjust()
        broker.end(broker.book.held()[-1])
        assert broker.settle() == 10
    assert broker.cancelled - cancelled == 5
    assert broker.consumer.consuming


def test_tasks_that_wait_for_their_eta_end_with_the_budget_however_small_they_are() -> None:
    broker = Broker(budget=100 * EARLY_BYTES)
    for _ in range(400):
        broker.slots = 10 + len(broker.book)  # as Celery has it while all wait
        broker.push()
        broker.adjust()
    assert 110 <= len(broker.book) <= 140  # the budget, and what the count had grown by last


def test_a_single_slot_more_waits_for_others_a_little() -> None:
    broker = Broker()
    broker.settle()
    started = broker.started
    broker.slots = 11
    for _ in range(LOOKS):
        broker.adjust()
    assert broker.started == started
    broker.adjust()
    assert broker.started == started + 1


def test_sizes_that_move_a_little_are_no_reason_for_another_consumer() -> None:
    broker = Broker(slots=50, budget=100_000, unknown=100_000)
    broker.size = 10_000
    assert broker.settle() == 10
    broker.end_all()
    started = broker.started
    for _ in range(100):
        broker.prefetch.received(9_000)
        broker.adjust()
    assert (broker.started, broker.cancelled) == (started, 0)


def test_slots_that_open_one_by_one_do_not_end_in_a_consumer_for_each() -> None:
    broker = Broker()
    for slots in range(10, 110):
        broker.slots = slots
        broker.settle()
        assert sum(each.consuming for each in broker.consumers) <= CONSUMERS_MAX + 1
    broker.end_all()
    assert broker.settle() == 109


def test_after_a_lowering_slots_are_filled_again_though_what_ends_does_so_one_by_one() -> None:
    broker = Broker(slots=50, unknown=1, budget=10**6)
    broker.work(task_s=60.0, seconds=100)
    broker.admission.cap = 25
    broker.adjust()
    broker.admission.cap = 50
    started = broker.started
    broker.work(task_s=60.0, seconds=200)
    assert broker.settle() == 50
    assert broker.started - started <= 15


def test_over_the_budget_nothing_takes_the_place_of_what_ends() -> None:
    broker = Broker(unknown=1)
    broker.size = 300
    held = broker.push()
    assert broker.prefetch.exceeded is False, "it was noticed"
    assert broker.cancelled == 1
    for delivery in held[:6]:
        broker.end(delivery)
        broker.adjust()
        assert broker.push() == []


def test_what_a_cancelled_consumer_was_given_takes_slots_until_it_ends() -> None:
    broker = Broker()
    broker.settle()
    broker.admission.cap = 2
    broker.adjust()
    broker.admission.cap = 10
    assert broker.settle() == 10
    broker.end_all()
    assert broker.settle() == 10


def test_other_queues_begin_anew_with_their_part_of_the_bytes() -> None:
    broker = Broker(unknown=100)
    broker.consumer.queues.append(SimpleNamespace(name="r"))
    broker.adjust()
    assert broker.consumer.prefetch_count == 5


def test_after_a_stop_nothing_is_consumed() -> None:
    broker = Broker()
    broker.settle()
    broker.prefetch.stop()
    broker.end_all()
    assert broker.settle() == 0
    assert not any(each.consuming for each in broker.consumers)


def test_a_consumer_that_could_not_be_started_is_started_the_next_time() -> None:
    broker = Broker(unknown=1)
    broker.admission.cap = 4
    broker.consumer.fails = True
    with pytest.raises(TimeoutError):
        broker.adjust()
    broker.consumer.fails = False
    assert broker.settle() == 4


def test_after_a_lost_connection_a_new_one_begins_with_all_slots() -> None:
    broker = Broker()
    broker.settle()
    for delivery in broker.book.held():
        broker.book.lose(delivery)
    prefetch = Prefetch(book=broker.book, slots=lambda: 10, message_bytes=1)
    prefetch.begin(broker.consumer)
    assert broker.consumer.prefetch_count == 10


def test_a_new_connection_beside_more_that_is_still_held_than_there_are_slots_has_a_limit() -> None:
    broker = Broker(slots=2)
    broker.settle()
    strays = SimpleNamespace(body=b"x", delivery_info={"consumer_tag": "of-another-connection"})
    for _ in range(3):
        broker.book.open(strays)
    broker.prefetch.begin(broker.consumer)

    assert broker.consumer.prefetch_count == 1


def test_a_consumer_beside_another_does_the_same_with_messages_and_has_tags_of_its_own() -> None:
    with Connection("memory://") as connection:
        first = Consumer(connection.channel(), queues=[Queue("q")], on_message=print, accept=["json"])
        second = beside(first)
        assert (second.channel, second.on_message, second.accept) == (first.channel, print, first.accept)
        assert [queue.name for queue in second.queues] == ["q"]
        second.tag_prefix = "forwarder-2."
        second.consume()
        [tag] = second.channel._consumers
        assert tag.startswith("forwarder-2.")
