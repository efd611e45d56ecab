"""How many slots open and close: by table, and for any load that a seed makes."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.scaling.green_decisions import BACK_PART, BAND_ROUNDS, IDLE_ROUNDS, Demand, SoftLimit

LEAST, MOST = 2, 50
SHARES = st.floats(0, 1.5)
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


def soft() -> SoftLimit:
    return SoftLimit(slots_max=MOST, high=0.7)


@pytest.mark.parametrize(
    ("cap", "held", "share", "cap_next"),
    [
        (50, 50, 0.70, 38),
        (50, 8, 0.71, 6),  # from what is held: 38 would lower nothing
        (50, 0, 0.95, 1),
        (2, 2, 0.9, 1),
        (1, 1, 0.9, 1),
        (20, 20, 0.67, 20),
        (20, 20, 0.64, 22),
        (1, 1, 0.1, 2),
        (49, 3, 0.1, 50),
        (50, 3, 0.1, 50),
    ],
)
def test_above_the_soft_limit_the_cap_falls_and_under_it_it_comes_back(
    cap: int, held: int, share: float, cap_next: int
) -> None:
    assert soft().next(cap=cap, held=held, share=share) == cap_next


def test_a_share_that_stays_just_below_the_soft_limit_brings_one_slot_back_every_half_minute() -> None:
    """What else is in the container may hold it there, for good."""
    limit, cap, caps = soft(), 50, []
    for _ in range(12):
        cap = limit.next(cap=cap, held=50, share=0.75)
    assert cap == 2
    for _ in range(3 * BAND_ROUNDS):
        cap = limit.next(cap=cap, held=cap, share=0.66)
        caps.append(cap)
    assert caps == [2] * 29 + [3] * 30 + [4] * 30 + [5]
    for _ in range(86_400):
        cap = limit.next(cap=cap, held=min(cap, 1), share=0.66)
    assert cap == 50


def test_half_a_minute_begins_anew_when_the_cap_has_moved() -> None:
    for share in (0.75, 0.5):
        limit, cap = soft(), 20
        for _ in range(BAND_ROUNDS - 1):
            cap = limit.next(cap=cap, held=20, share=0.66)
        assert cap == 20
        moved = limit.next(cap=cap, held=20, share=share)
        assert moved != cap
        assert limit.next(cap=moved, held=20, share=0.66) == moved


@given(st.data(), st.integers(1, 300), HIGHS, st.lists(SHARES, max_size=200))
def test_the_cap_never_leaves_its_bounds(
    data: st.DataObject, slots_max: int, high: float, shares: list[float]
) -> None:
    limit = SoftLimit(slots_max=slots_max, high=high)
    cap = data.draw(st.integers(1, slots_max))
    for share in shares:
        cap = limit.next(cap=cap, held=data.draw(st.integers(0, 2 * slots_max)), share=share)
        assert 1 <= cap <= slots_max


@given(
    st.data(),
    st.integers(1, 60),
    HIGHS,
    st.lists(SHARES, max_size=50),
    st.sampled_from([0, BACK_PART]).flatmap(
        lambda least: st.lists(st.floats(least, 0.999), min_size=1, max_size=20)
    ),
)
def test_below_the_soft_limit_all_slots_come_back_whatever_was_before(
    data: st.DataObject, slots_max: int, high: float, before: list[float], below: list[float]
) -> None:
    """``below`` are parts of ``high``, over and over."""
    limit = SoftLimit(slots_max=slots_max, high=high)
    cap = data.draw(st.integers(1, slots_max))
    for share in before:
        cap = limit.next(cap=cap, held=slots_max, share=share)
    for part in itertools.islice(itertools.cycle(below), BAND_ROUNDS * slots_max):
        raised = limit.next(cap=cap, held=cap, share=part * high)
        assert raised >= cap
        cap = raised
    assert cap == slots_max


@given(HIGHS)
def test_there_is_a_share_below_which_slots_come_back_at_once_whatever_the_setting(high: float) -> None:
    limit = SoftLimit(slots_max=MOST, high=high)
    assert limit.next(cap=8, held=8, share=high * BACK_PART - 0.001) == 9
    assert limit.next(cap=8, held=8, share=high * BACK_PART + 0.001) == 8


def test_memory_that_grows_with_what_is_held_settles() -> None:
    """3 % of the limit a task: 23 of them are below the soft limit."""
    limit, cap, caps = soft(), MOST, []
    for _ in range(300):
        cap = limit.next(cap=cap, held=cap, share=0.03 * cap)
        caps.append(cap)
    assert set(caps[50:]) <= set(range(17, 25))
    assert all(0.03 * cap < 0.75 for cap in caps[10:])
