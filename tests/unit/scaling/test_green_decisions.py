"""How many slots open and close: by table, and for any load that a seed makes."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.scaling.green_decisions import (
    BAND_ROUNDS,
    CEILING_ROUNDS,
    IDLE_ROUNDS,
    SPARE_ROUNDS,
    Demand,
    SoftLimit,
)

LEAST, MOST = 2, 50
SHARES = st.floats(0, 1.5)
PARTS = st.floats(0, 0.999)
HIGHS = st.integers(20, 100).map(lambda percent: percent / 100)


def demand() -> Demand:
    return Demand(least=LEAST, most=MOST)


@pytest.mark.parametrize(
    ("slots", "running", "waiting", "slots_next"),
    [
        (2, 0, 0, 2),
        (2, 2, 0, 2),
        (2, 2, 1, 3),
        (2, 2, 2, 4),
        (2, 2, 500, 4),
        (20, 20, 500, 40),
        (40, 40, 500, 50),
        (50, 50, 500, 50),
        (10, 4, 6, 10),
        (10, 0, 0, 10),  # not at once
        (10, 10, None, 10),
        (1, 0, None, 2),
        (99, 0, None, 50),
    ],
)
def test_slots_double_while_more_waits_and_stay_otherwise(
    slots: int, running: int, waiting: int | None, slots_next: int
) -> None:
    assert demand().next(slots=slots, running=running, waiting=waiting) == slots_next


def test_from_one_slot_to_256_in_eight_rounds() -> None:
    made, slots = Demand(least=1, most=256), 1
    for _ in range(8):
        slots = made.next(slots=slots, running=slots, waiting=10_000)
    assert slots == 256


def test_slots_close_slowly_once_they_were_idle_for_long() -> None:
    made, slots = demand(), MOST
    sizes = []
    for _ in range(IDLE_ROUNDS + 60):
        slots = made.next(slots=slots, running=0, waiting=0)
        sizes.append(slots)
    assert set(sizes[: IDLE_ROUNDS - 1]) == {MOST}
    steps = [before - after for before, after in itertools.pairwise(sizes)]
    assert max(steps) == MOST // 10
    assert min(steps) >= 0
    assert sizes[-1] == LEAST


def test_a_backlog_that_can_not_be_read_changes_nothing_and_is_no_idle_round() -> None:
    made = demand()
    for _ in range(3 * IDLE_ROUNDS):
        assert made.next(slots=30, running=0, waiting=None) == 30


@pytest.mark.parametrize("seed", range(50))
def test_never_outside_the_bounds_and_never_below_what_runs(seed: int) -> None:
    chance = random.Random(seed)
    made, slots = demand(), LEAST
    for _ in range(300):
        running = chance.randint(0, slots)
        waiting = chance.choice([None, 0, 0, chance.randint(0, 200)])
        slots = made.next(slots=slots, running=running, waiting=waiting)
        assert max(LEAST, running) <= slots <= MOST


@pytest.mark.parametrize("load", [0, 1, 2, 3, 17, 49, 50, 51, 1000])
def test_a_steady_load_settles_and_nothing_moves_any_more(load: int) -> None:
    made, slots = demand(), LEAST
    sizes = []
    for _ in range(200):
        running = min(load, slots)
        slots = made.next(slots=slots, running=running, waiting=load - running)
        sizes.append(slots)
    assert set(sizes[100:]) == {min(MOST, max(LEAST, load))}


@pytest.mark.parametrize("seed", range(20))
def test_a_load_that_varies_a_little_never_makes_slots_come_and_go(seed: int) -> None:
    """Up and down within half a minute: what was needed lately stays open."""
    chance = random.Random(seed)
    made, slots = demand(), 20
    sizes = []
    for _ in range(300):
        wanted = chance.randint(15, 20) if chance.random() < 0.9 else 20
        running = min(wanted, slots)
        slots = made.next(slots=slots, running=running, waiting=wanted - running)
        sizes.append(slots)
    assert min(sizes) >= 18


def soft(cap: int = MOST, *, slots_max: int = MOST, high: float = 0.7) -> SoftLimit:
    limit = SoftLimit(slots_max=slots_max, high=high)
    limit.cap = cap
    return limit


class Short:
    """Tasks that end within a round, so that each number of them shows at once what it costs."""

    def __init__(self, limit: SoftLimit) -> None:
        self.limit = limit
        self.ended = 0

    def round(self, share: float) -> int:
        """Return the cap after a round in which all slots were filled."""
        self.ended += self.limit.cap
        self.limit.next(running=self.limit.cap, ended=self.ended, share=share)
        return self.limit.cap


@pytest.mark.parametrize(
    ("cap", "running", "share", "cap_next"),
    [
        (50, 50, 0.70, 38),
        (50, 50, 1.40, 25),  # three quarters would still be too many
        (50, 8, 0.71, 6),  # from what runs: 38 would lower nothing
        (50, 0, 0.95, 50),  # it is no task's
        (2, 2, 0.9, 1),
        (1, 1, 0.9, 1),
    ],
)
def test_above_the_soft_limit_the_cap_falls_and_no_slot_is_filled(
    cap: int, running: int, share: float, cap_next: int
) -> None:
    limit = soft(cap)
    assert limit.next(running=running, ended=0, share=share) == 1
    assert limit.cap == cap_next
    assert limit.next(running=0, ended=0, share=0.5) == cap_next


def test_it_falls_again_when_those_it_allows_run_and_further_when_those_that_passed_it_grow() -> None:
    limit = soft()
    for running, share, cap in ((50, 0.72, 38), (45, 0.76, 38), (45, 1.0, 35), (35, 0.8, 27), (12, 0.8, 27)):
        assert limit.next(running=running, ended=0, share=share) == 1
        assert limit.cap == cap


@pytest.mark.parametrize(
    ("cap", "ended", "share", "cap_next"),
    [
        (20, 20, 0.1, 25),
        (20, 20, 0.59, 23),  # as many as there is room for
        (20, 20, 0.67, 20),
        (20, 19, 0.1, 20),  # not all have ended since
        (1, 1, 0.1, 2),
        (1, 1, 0.0, 2),
        (49, 49, 0.1, 50),
    ],
)
def test_below_it_rises_when_as_many_have_ended(cap: int, ended: int, share: float, cap_next: int) -> None:
    assert soft(cap).next(running=cap, ended=ended, share=share) == cap_next


@pytest.mark.parametrize(("running", "cap_next"), [(15, 25), (16, 20)])
def test_a_cap_that_is_not_made_use_of_rises_after_some_seconds(running: int, cap_next: int) -> None:
    limit = soft(20)
    for _ in range(SPARE_ROUNDS - 1):
        assert limit.next(running=running, ended=0, share=0.1) == 20
    assert limit.next(running=running, ended=0, share=0.1) == cap_next


def test_the_largest_share_while_as_many_ended_says_how_many_more_there_is_room_for() -> None:
    limit = soft(20)
    for share, ended in ((0.2, 0), (0.65, 10), (0.2, 19)):
        assert limit.next(running=20, ended=ended, share=share) == 20
    assert limit.next(running=20, ended=20, share=0.2) == 21


def test_a_share_of_tasks_that_have_ended_says_nothing_of_the_next() -> None:
    limit = soft(20)
    for share, ended in ((0.69, 0), (0.69, 20), (0.1, 21)):
        assert limit.next(running=20, ended=ended, share=share) == 20
    assert limit.next(running=20, ended=40, share=0.1) == 25


def test_a_share_from_before_the_tasks_had_followed_says_nothing_of_the_cap() -> None:
    limit = soft(20)
    for running, share in ((20, 0.75), (18, 0.72)):
        limit.next(running=running, ended=0, share=share)
    assert limit.next(running=15, ended=5, share=0.55) == 15
    assert limit.next(running=15, ended=32, share=0.50) == 15, "18 of these began before"
    assert limit.next(running=15, ended=33, share=0.50) == 18


def test_a_share_that_leaves_no_room_brings_one_slot_back_every_half_minute() -> None:
    """What else is in the container may hold it there, for good."""
    tasks = Short(soft())
    for _ in range(12):
        tasks.round(0.75)
    assert tasks.limit.cap == 2
    caps = [tasks.round(0.66) for _ in range(3 * BAND_ROUNDS)]
    assert caps == [2] * 29 + [3] * 30 + [4] * 30 + [5]
    for _ in range(86_400):
        tasks.round(0.66)
    assert tasks.limit.cap == 50


def test_what_was_too_many_is_tried_again_after_ten_minutes() -> None:
    """3.5 % of the limit a task: 19 of them are below the soft limit."""
    tasks = Short(soft(20))
    caps = [tasks.round(0.035 * tasks.limit.cap) for _ in range(2 * CEILING_ROUNDS)]
    assert max(caps[:CEILING_ROUNDS]) == 19
    assert caps.count(20) == 1
    assert sum(caps) / len(caps) > 18.5


@given(st.data(), st.integers(1, 300), HIGHS, st.lists(SHARES, max_size=200))
def test_the_cap_never_leaves_its_bounds(
    data: st.DataObject, slots_max: int, high: float, shares: list[float]
) -> None:
    limit, ended = soft(data.draw(st.integers(1, slots_max)), slots_max=slots_max, high=high), 0
    for share in shares:
        ended += data.draw(st.integers(0, 2 * slots_max))
        slots = limit.next(running=data.draw(st.integers(0, 2 * slots_max)), ended=ended, share=share)
        assert 1 <= slots <= limit.cap <= slots_max


@given(st.data(), st.integers(1, 60), HIGHS, st.lists(SHARES, max_size=50), st.lists(PARTS, min_size=1))
def test_below_the_soft_limit_all_slots_come_back_whatever_was_before(
    data: st.DataObject, slots_max: int, high: float, before: list[float], below: list[float]
) -> None:
    """``below`` are parts of ``high``, over and over."""
    tasks = Short(soft(data.draw(st.integers(1, slots_max)), slots_max=slots_max, high=high))
    for share in before:
        tasks.round(share)
    for part in itertools.islice(itertools.cycle(below), BAND_ROUNDS * slots_max + CEILING_ROUNDS):
        cap = tasks.limit.cap
        assert tasks.round(part * high) >= cap
    assert tasks.limit.cap == slots_max
