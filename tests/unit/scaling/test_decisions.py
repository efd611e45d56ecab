"""The prefork autoscaler's decisions: by table, and what holds whatever is seen."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from forwarder.scaling.decisions import Decision, Rule, View, decide, hard_cap

MB = 1024 * 1024
RULE = Rule(maximum=100, minimum=2, low=0.5, high=0.7)
#: 2,000 MB and children of 50 MB: 28 fit below 70 %, less one.
VIEW = View(
    size=8,
    shown=8,
    child_bytes=50 * MB,
    child_now_bytes=50 * MB,
    used_bytes=500 * MB,
    limit_bytes=2000 * MB,
    full=True,
    calm=False,
)
CAP = 27


def test_the_cap_is_what_fits_below_the_high_mark_less_one() -> None:
    assert hard_cap(limit_bytes=2000 * MB, high=0.7, child_bytes=50 * MB) == CAP
    assert hard_cap(limit_bytes=100 * MB, high=0.7, child_bytes=100 * MB) == -1


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # Below 50 %: up, by as many as have shown their size.
        ({"size": 2, "shown": 2, "used_bytes": 200 * MB}, ("grow", 4, "demand")),
        ({"size": 6, "shown": 4, "used_bytes": 300 * MB}, ("grow", 8, "demand")),
        ({"size": 10, "shown": 10, "used_bytes": 300 * MB}, ("grow", 20, "demand")),
        ({"size": 4, "shown": 2, "used_bytes": 200 * MB}, ("hold", 4, "sizes_unknown")),
        ({"size": 4, "shown": 0, "used_bytes": 200 * MB}, ("hold", 4, "sizes_unknown")),
        # Demand: none while a child is idle; less after a long calm.
        ({"full": False}, ("hold", 8, "idle_children")),
        ({"full": False, "calm": True}, ("shrink", 7, "idle_children")),
        ({"size": 2, "shown": 2, "full": False, "calm": True}, ("hold", 2, "idle_children")),
        # 50 to 70 %: nothing.
        ({"used_bytes": 1000 * MB}, ("hold", 8, "memory_above_low")),
        ({"used_bytes": 1400 * MB}, ("hold", 8, "memory_above_low")),
        # Above 70 %: down by one, whether there is demand or not, but never below MIN.
        ({"used_bytes": 1401 * MB}, ("shrink", 7, "memory_above_high")),
        ({"used_bytes": 1401 * MB, "full": False}, ("shrink", 7, "memory_above_high")),
        ({"size": 2, "shown": 2, "used_bytes": 1401 * MB}, ("block", 2, "memory_above_low")),
        # Where MIN alone is above the cap, MIN stays.
        ({"size": 2, "shown": 2, "child_bytes": 900 * MB, "used_bytes": 500 * MB}, ("block", 2, "cap")),
        # The cap, and the largest size that was asked for.
        ({"size": CAP, "shown": CAP, "used_bytes": 900 * MB}, ("block", CAP, "cap")),
        # A little over the cap may stay; much over it may not, little as is used now.
        ({"size": CAP + 1, "shown": CAP, "used_bytes": 900 * MB}, ("block", CAP + 1, "cap")),
        ({"size": CAP + 5, "shown": CAP, "used_bytes": 900 * MB}, ("shrink", CAP + 4, "cap")),
        # A large task is over: nothing grows, and nobody goes for it.
        ({"size": 19, "shown": 19, "child_bytes": 350 * MB, "used_bytes": 950 * MB}, ("block", 19, "cap")),
        (
            {"size": 100, "shown": 100, "child_bytes": MB, "child_now_bytes": MB, "used_bytes": 200 * MB},
            ("block", 100, "maximum"),
        ),
        (
            {"size": 101, "shown": 101, "child_bytes": MB, "child_now_bytes": MB, "used_bytes": 200 * MB},
            ("shrink", 100, "maximum"),
        ),
        # One that ended by itself is not replaced while there are MIN; below it is.
        ({"size": 1, "shown": 1}, ("grow", 2, "minimum")),
        # The last step goes to the cap in one; one before it ends where the next can begin.
        ({"size": 19, "shown": 19, "used_bytes": 980 * MB}, ("grow", CAP, "demand")),
        ({"size": 12, "shown": 12, "used_bytes": 630 * MB}, ("grow", 17, "demand")),
        # Where memory decides and not the number, all sizes must be known.
        ({"size": 12, "shown": 11, "used_bytes": 630 * MB}, ("hold", 12, "sizes_unknown")),
        ({"size": 9, "shown": 9, "child_bytes": 120 * MB, "used_bytes": 990 * MB}, ("grow", 10, "demand")),
        # More in use than the children explain: no room although the cap is not reached.
        ({"size": 3, "shown": 3, "child_bytes": 300 * MB, "used_bytes": 990 * MB}, ("block", 3, "cap")),
        ({"size": 2, "shown": 2, "child_bytes": 420 * MB, "used_bytes": 990 * MB}, ("block", 2, "cap")),
    ],
)
def test_a_decision(seen: dict[str, int], expected: tuple[str, int, str]) -> None:
    assert decide(RULE, replace(VIEW, **seen)) == Decision(*expected)  # type: ignore[arg-type]


def test_what_others_in_the_container_use_leaves_no_room() -> None:
    seen = replace(VIEW, size=2, shown=2, child_bytes=450 * MB, used_bytes=999 * MB)
    assert decide(replace(RULE, minimum=1), seen) == Decision("block", 2, "cap")
    wide = replace(RULE, minimum=1, high=0.72)
    assert decide(wide, replace(seen, child_bytes=470 * MB)).action == "block"


def views(seed: int) -> list[tuple[Rule, View]]:
    """Return a thousand things that may be seen, under a thousand rules."""
    draw = random.Random(seed)
    made = []
    for _ in range(1000):
        minimum = draw.randint(1, 20)
        low = draw.uniform(0.1, 0.8)
        rule = Rule(
            maximum=draw.randint(minimum, 200), minimum=minimum, low=low,
            high=draw.uniform(low + 0.01, 1.0),
        )  # fmt: skip
        size = draw.randint(minimum, rule.maximum)
        limit = draw.randint(100 * MB, 64_000 * MB)
        view = View(
            size=size, shown=draw.randint(0, size), child_bytes=draw.randint(0, 500 * MB),
            child_now_bytes=draw.randint(0, 500 * MB),
            used_bytes=draw.randint(0, int(limit * 1.1)), limit_bytes=limit,
            full=draw.random() < 0.7, calm=draw.random() < 0.3,
        )  # fmt: skip
        made.append((rule, view))
    return made


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_seen_the_pool_stays_within_its_bounds(seed: int) -> None:
    actions = Counter[str]()
    for rule, view in views(seed):
        decision = decide(rule, view)
        actions[decision.action] += 1
        cap = hard_cap(limit_bytes=view.limit_bytes, high=rule.high, child_bytes=view.child_bytes)
        assert rule.minimum <= decision.target <= rule.maximum
        if decision.action == "grow":
            assert decision.target <= cap
            assert view.used_bytes < rule.low * view.limit_bytes
            assert decision.target - view.size <= max(view.shown, rule.minimum)
            grown = view.used_bytes + (decision.target - view.shown) * view.child_bytes
            assert grown <= rule.high * view.limit_bytes
        elif decision.action == "shrink":
            assert decision.target == view.size - 1
        else:
            assert decision.target == view.size
        if view.used_bytes > rule.high * view.limit_bytes and view.size > rule.minimum:
            assert decision.action == "shrink"
    assert set(actions) == {"grow", "hold", "block", "shrink"}


@pytest.mark.parametrize("seed", range(20))
def test_under_a_steady_load_the_size_settles_and_stays(seed: int) -> None:
    draw = random.Random(seed)
    limit, child, base = draw.randint(500, 8000) * MB, draw.randint(20, 200) * MB, draw.randint(40, 120) * MB
    demand = draw.randint(1, 150)
    rule = replace(RULE, minimum=1)
    size, shown, sizes, busy = 1, 0, [], [0] * 30
    for _ in range(300):
        busy = [*busy[1:], min(demand, size)]
        seen = View(
            size=size, shown=shown, child_bytes=child, child_now_bytes=child, limit_bytes=limit,
            used_bytes=base + shown * child + (size - shown) * 10 * MB, full=demand >= size,
            calm=max(busy) <= size - 2,
        )  # fmt: skip
        shown = min(size, demand)
        size = decide(rule, seen).target
        shown = min(shown, size)
        sizes.append(size)
    assert len(set(sizes[-150:])) == 1
    changes = [after - before for before, after in itertools.pairwise(sizes) if after != before]
    downs = [change for change in changes if change < 0]
    assert not any(change > 0 for change in changes[changes.index(downs[0]) :]) if downs else True


@pytest.mark.parametrize("grown", [0.0, 0.3, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("task_looks", [1, 2, 3])
def test_the_share_of_the_cap_that_a_full_pool_reaches(grown: float, task_looks: int) -> None:
    """However much of their size children take before their first task ends, and however long that is."""
    for limit in range(700, 4000, 25):
        sizes = [0] * task_looks + [2]
        for _ in range(100):
            size, shown = sizes[-1], sizes[-1 - task_looks]
            used = 60 * MB + int((shown + grown * (size - shown)) * 48 * MB)
            seen = View(
                size=size, shown=shown, child_bytes=48 * MB, child_now_bytes=48 * MB,
                used_bytes=used, limit_bytes=limit * MB, full=True, calm=False,
            )  # fmt: skip
            sizes.append(decide(RULE, seen).target)
            assert sizes[-1] >= size, (limit, sizes)
        cap = hard_cap(limit_bytes=limit * MB, high=0.7, child_bytes=48 * MB)
        assert sizes[-1] >= min(0.9 * cap, cap - 1), (limit, sizes, cap)
