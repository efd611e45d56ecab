"""How much work may be held: slots, bytes, and the one message that always may."""

from __future__ import annotations

import threading
from unittest import mock

import pytest

from forwarder.scaling.admission import EARLY_BYTES, INFLIGHT_SHARE, TURN_BYTES, Admission, default_bytes_max

MIB = 1024 * 1024


def admission(*, slots: int = 4, bytes_max: int = 100) -> Admission:
    return Admission(slots_max=4, bytes_max=bytes_max, slots=slots)


@pytest.mark.parametrize(
    ("slots", "cap", "held", "payload_bytes", "room"),
    [
        (4, 4, 0, 0, 4),
        (4, 4, 3, 3, 1),
        (4, 4, 4, 4, 0),
        (2, 4, 0, 0, 2),
        (2, 4, 1, 1, 1),
        (2, 4, 3, 3, 0),  # slots that closed take nothing from what runs, and nothing more
        (4, 1, 0, 0, 1),
        (1, 1, 1, 1, 0),
        (4, 4, 1, 99, 3),
        (4, 4, 1, 100, 0),
        (4, 4, 3, 1000, 0),
    ],
)
def test_room_is_what_slots_cap_and_bytes_leave(
    slots: int, cap: int, held: int, payload_bytes: int, room: int
) -> None:
    made = admission(slots=slots)
    made.cap = cap
    assert made.room(free=4 - held, held=held, payload_bytes=payload_bytes) == room


def test_a_worker_that_holds_nothing_takes_one_message_whatever_the_budget() -> None:
    made = admission(bytes_max=1)
    made.hold_response(50, 60.0)
    assert made.room(free=4, held=0, payload_bytes=0) == 1


def test_tasks_that_wait_for_their_eta_add_to_the_slots_as_celery_counts_them() -> None:
    """Celery raises the prefetch count by one for each, so there is more that is free."""
    made = admission(slots=2)
    assert made.room(free=4 + 3 - 3, held=3, payload_bytes=3) == 2


def test_what_is_held_beyond_the_slots_costs_more_than_its_body() -> None:
    """Else nothing bounds how many small tasks with an ETA are held: each raises Celery's count by one."""
    made = admission(bytes_max=3 * EARLY_BYTES)
    assert made.room(free=1, held=4 + 2, payload_bytes=6) == 1
    assert made.room(free=1, held=4 + 3, payload_bytes=7) == 0
    assert made.bytes_left(held=4, payload_bytes=4) == 3 * EARLY_BYTES - 4
    assert made.bytes_left(held=4 + 3, payload_bytes=7) == -7


def test_a_response_counts_until_its_slot_drops_it() -> None:
    made = admission()
    made.hold_response(10, 60.0)
    made.hold_response(70, 60.0)
    assert made.bytes_left(held=1, payload_bytes=20) == 10
    made.drop_response()
    made.drop_response()
    assert made.bytes_left(held=1, payload_bytes=20) == 80


def test_each_slot_drops_its_own_response_alone() -> None:
    made = admission()
    made.hold_response(10, 60.0)

    def another() -> None:
        made.hold_response(5, 60.0)
        made.drop_response()

    other = threading.Thread(target=another)
    other.start()
    other.join()
    assert made.response_bytes == 10


def test_a_new_try_takes_the_place_of_the_last_ones_response() -> None:
    made = admission()
    made.hold_response(70, 60.0)
    made.hold_response(3, 60.0)
    assert made.response_bytes == 3


class Crowd:
    """Slots whose responses come at the same time."""

    def __init__(self, *, bytes_max: int) -> None:
        self._waits: list[float] = []
        self.admission = Admission(slots_max=4, bytes_max=bytes_max, sleep=self._waits.append)

    def hold(self, slot: str, number: int, within_s: float = 10.0) -> float:
        """Hold so many bytes in a slot; return for how many seconds it waited, be it in vain."""
        self._waits.clear()
        with mock.patch("threading.get_ident", return_value=slot):
            try:
                self.admission.hold_response(number, within_s)
            except TimeoutError:
                assert sum(self._waits) >= within_s
            else:
                assert sum(self._waits) < within_s
        return round(sum(self._waits), 6)

    def drop(self, slot: str) -> None:
        with mock.patch("threading.get_ident", return_value=slot):
            self.admission.drop_response()


def test_of_large_responses_over_the_budget_the_first_goes_on_and_the_others_wait() -> None:
    crowd = Crowd(bytes_max=TURN_BYTES)
    assert crowd.hold("a", TURN_BYTES) == 0
    assert crowd.hold("b", TURN_BYTES, within_s=1.0) == 1.0, "until its time is over"
    assert crowd.hold("a", 5 * TURN_BYTES) == 0
    crowd.drop("a")
    assert crowd.hold("c", TURN_BYTES) == 10.0
    assert crowd.hold("b", 2 * TURN_BYTES) == 0


def test_a_response_within_the_budget_or_a_small_one_waits_for_nobody() -> None:
    crowd = Crowd(bytes_max=10 * TURN_BYTES)
    for slot, number in {"a": 5 * TURN_BYTES, "b": 5 * TURN_BYTES, "c": TURN_BYTES - 1}.items():
        assert crowd.hold(slot, number) == 0


def test_payloads_take_from_the_budget_of_the_responses() -> None:
    crowd = Crowd(bytes_max=10 * TURN_BYTES)
    crowd.admission.room(free=3, held=1, payload_bytes=9 * TURN_BYTES)
    assert crowd.hold("a", TURN_BYTES) == 0
    assert crowd.hold("b", TURN_BYTES) == 10.0


def test_refusals_are_counted_where_bytes_are_the_reason_alone() -> None:
    made = admission()
    made.room(free=0, held=4, payload_bytes=4)
    assert made.refused == 0
    made.room(free=1, held=3, payload_bytes=100)
    assert made.refused == 1


def test_the_default_budget_leaves_the_memory_that_its_bytes_cost_below_the_soft_limit() -> None:
    """Five bytes each, as measured, and 64 MiB of the worker's own."""
    for limit in (512 * MIB, 2048 * MIB):
        assert 5 * default_bytes_max(limit) + 64 * MIB < 0.7 * limit
    assert default_bytes_max(1) == 1
    assert INFLIGHT_SHARE < 0.2
