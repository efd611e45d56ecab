"""The delete buffer: few calls, nothing forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.sqs.deletes import DeleteBuffer


class Deleter:
    """Notes each batch; fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[list[str]] = []
        self.failures = failures
        self.called = threading.Event()

    def __call__(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        self.batches.append([delivery.tag for delivery in deliveries])
        self.called.set()
        if self.failures:
            self.failures -= 1
            if self.failures % 2:
                raise ConnectionError
            return deliveries
        return []


def buffer(delete: Deleter, window_s: float) -> DeleteBuffer:
    return DeleteBuffer(delete=delete, clock=time.monotonic, uniform=lambda low, high: 0.0, window_s=window_s)


def deliveries(number: int) -> list[Delivery]:
    return [Delivery(tag=str(n), queue="q", number=1, confirmed_s=0.0, message=None) for n in range(number)]


def test_ten_go_at_once_and_the_rest_when_the_window_is_over_or_the_buffer_closes() -> None:
    delete = Deleter()
    deletes = buffer(delete, window_s=60)
    for delivery in deliveries(13):
        deletes.add(delivery)
    assert delete.called.wait(5)
    assert [len(batch) for batch in delete.batches] == [10]
    deletes.close()
    assert [len(batch) for batch in delete.batches] == [10, 3]


def test_a_single_one_goes_when_the_window_is_over() -> None:
    delete = Deleter()
    deletes = buffer(delete, window_s=0.001)
    deletes.add(deliveries(1)[0])
    assert delete.called.wait(5)
    deletes.close()
    assert delete.batches == [["0"]]


def test_what_failed_is_tried_again_first() -> None:
    delete = Deleter(failures=2)
    deletes = buffer(delete, window_s=60)
    for delivery in deliveries(12):
        deletes.add(delivery)
    deletes.close()
    first = [str(n) for n in range(10)]
    assert delete.batches == [first, first, first, ["10", "11"]]


def test_a_buffer_that_was_never_used_has_no_thread() -> None:
    before = threading.active_count()
    deletes = buffer(Deleter(), window_s=60)
    assert threading.active_count() == before
    deletes.close()
