"""What a worker makes of its own measurements, by table: servers whose limits are known."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

import pytest

from forwarder.tuning.auto import AGAIN_S, Auto, Bound, Step
from forwarder.tuning.flow import Done, Flow, Seen
from forwarder.tuning.levels import Level

Server = Callable[[int], Level]
FREE = Bound(128, "MAX of --autoscale")


def seen(level: Level, *, message_bytes: int = 1000) -> Seen:
    return Seen(level, [message_bytes] * 10)


def level(slots: int, per_s: float, *, busy: int = 0, failed: int = 0) -> Level:
    return Level(slots, per_s, [slots / per_s] * 10, busy=busy, failed=failed)


def serving(most: int) -> Server:
    """Serve so many at a time, a second each; the others wait."""
    return lambda slots: level(slots, min(slots, most))


def refusing(most: int) -> Server:
    return lambda slots: level(slots, min(slots, most), busy=10 if slots > most else 0)


def failing(most: int) -> Server:
    """Answer the faster, with errors, the more there is to do."""
    return lambda slots: level(slots, slots if slots <= most else 10 * slots, failed=10 * (slots > most))


def run(auto: Auto, server: Server, bound: Bound = FREE) -> tuple[list[int], Step]:
    """Measure until it settles; return what was asked for and the last step."""
    asked = [auto.asked]
    for _ in range(20):
        step = auto.next(seen(server(auto.asked)), now_s=0.0, bound=bound, held_back=False)
        assert step is not None
        assert step.slots == auto.asked
        if step.settled:
            return asked, step
        asked.append(step.slots)
    raise AssertionError("it does not settle")


@pytest.mark.parametrize(
    ("server", "asked", "found"),
    [
        (serving(16), [4, 8, 16, 32, 12], 16),
        (serving(10), [4, 8, 16, 32, 12], 12),
        (serving(4), [4, 8], 4),
        (serving(1), [4, 8], 4),
        (serving(1000), [4, 8, 16, 32, 64, 128], 128),
        (refusing(16), [4, 8, 16, 32, 24], 16),
        (refusing(2), [4], 4),
        (failing(16), [4, 8, 16, 32], 16),
        (failing(1), [4], 4),
    ],
)
def test_it_settles_where_more_is_of_no_use_and_never_below_the_operators_number(
    server: Server, asked: list[int], found: int
) -> None:
    tried, step = run(Auto(least=4), server)
    assert (tried, step.slots) == (asked, found)


def work(
    *, variation: float, dice: random.Random, serves: int = 16, mean_s: float = 3.0
) -> tuple[int, float]:
    """Work with lognormal tasks before a server that shares itself among them; return slots and seconds.

    ``variation`` is the standard deviation of their seconds by the mean.
    """
    auto, flow = Auto(least=4), Flow()
    sigma = math.sqrt(math.log(1 + variation**2))
    mu = math.log(mean_s) - sigma**2 / 2
    now_s = shared_s = 0.0  # shared_s: what each task that was there from the start has had
    running: list[tuple[float, float]] = []  # the shared_s at which it ends, when it was taken
    for second in range(1, 2000):
        done = []
        while now_s < second:
            while len(running) < auto.asked:
                heapq.heappush(running, (shared_s + dice.lognormvariate(mu, sigma), now_s))
            speed = min(1.0, serves / len(running))
            end_s = now_s + (running[0][0] - shared_s) / speed
            if end_s > second:
                shared_s += (second - now_s) * speed
                now_s = second
            else:
                now_s = end_s
                shared_s, taken_s = heapq.heappop(running)
                done.append(Done(taken_s, now_s, 1000))
        held_since_s = [taken_s for _, taken_s in running]
        seen = flow.look(now_s=now_s, slots=auto.asked, done=done, held_since_s=held_since_s, refused=(0, 0))
        step = seen and auto.next(seen, now_s=now_s, bound=Bound(64, "MAX"), held_back=False)
        if step and step.settled:
            return step.slots, now_s
    raise AssertionError("it does not settle")


@pytest.mark.parametrize(
    ("variation", "workers", "median_s"), [(0.05, 5, 100), (0.5, 20, 160), (1.0, 40, 240)]
)
def test_tasks_whose_times_vary_are_measured_until_the_rate_is_no_chance(
    variation: float, workers: int, median_s: float
) -> None:
    """A level of a dozen such tasks leaves one worker in thirty at MIN for good."""
    dice = random.Random(1)
    found = [work(variation=variation, dice=dice) for _ in range(workers)]
    assert min(slots for slots, _ in found) > 8
    assert sum(16 <= slots <= 32 for slots, _ in found) >= 0.95 * workers
    assert sorted(seconds for _, seconds in found)[workers // 2] <= median_s


def test_a_gain_that_may_be_chance_is_measured_once_more_and_counts_with_all_its_tasks() -> None:
    def half(slots: int, per_s: float) -> Seen:
        times_s = [0.5 * slots / per_s, 1.5 * slots / per_s] * 20
        return seen(Level(slots, per_s, times_s))

    def slots_after(*measured: Seen) -> int | None:
        auto = Auto(least=4)
        steps = [auto.next(each, now_s=0.0, bound=FREE, held_back=False) for each in measured]
        return None if steps[-1] is None else steps[-1].slots

    assert slots_after(half(4, 4.0), half(8, 8.0)) == 16
    assert slots_after(half(4, 4.0), half(8, 4.0)) is None
    assert slots_after(half(4, 4.0), half(8, 4.0), half(8, 4.0)) == 4
    assert slots_after(half(4, 4.0), half(8, 4.0), half(8, 12.0)) == 16  # 6 a second, of both
    # 5 %, and half of the 12 % that are chance: 10 % more are taken, and nothing beyond is tried.
    assert slots_after(half(4, 4.0), half(8, 4.4), half(8, 4.4)) == 8
    assert slots_after(half(4, 4.0), half(8, 4.56), half(8, 4.56)) == 16


@pytest.mark.parametrize("most", [1, 4, 5, 40])
def test_no_more_is_asked_for_than_the_bound_and_the_reason_names_it(most: int) -> None:
    tried, step = run(Auto(least=4), serving(1000), Bound(most, "what 100 file descriptors suffice for"))
    assert max(tried) == step.slots == max(4, most)
    assert "100 file descriptors" in step.why


def test_whatever_is_measured_it_stays_within_its_bounds_and_settles() -> None:
    dice = random.Random(1)
    for _ in range(2000):
        least, most = dice.randint(1, 40), dice.randint(1, 300)

        def server(slots: int) -> Level:
            return level(slots, dice.uniform(0.1, 2 * slots), busy=dice.choice([0, 0, 0, 10]))

        tried, step = run(Auto(least=least), server, Bound(most, "memory"))
        assert all(least <= slots <= max(least, most) for slots in [*tried, step.slots])
        assert len(tried) <= 10


def test_slots_that_are_not_all_there_yet_are_waited_for() -> None:
    auto = Auto(least=4)
    assert auto.next(seen(level(2, 2.0)), now_s=0.0, bound=FREE, held_back=False) is None
    assert auto.next(seen(level(8, 8.0)), now_s=0.0, bound=FREE, held_back=False) is None
    assert auto.asked == 4


def test_a_pool_that_memory_holds_back_settles_where_it_is() -> None:
    auto = Auto(least=4)
    for slots in (4, 8):
        auto.next(seen(level(slots, slots)), now_s=0.0, bound=FREE, held_back=False)
    step = auto.next(seen(level(11, 11.0)), now_s=0.0, bound=FREE, held_back=True)
    assert step is not None
    assert (step.settled, step.slots) == (True, 11)
    assert "memory" in step.why


@pytest.mark.parametrize(
    ("message_bytes", "task_s", "again"),
    [
        (100_000, 1.0, False),
        (399_000, 3.9, False),
        (100_000, 0.26, False),
        (400_000, 1.0, True),
        (25_000, 1.0, False),  # as small as the slot itself
        (100_000, 4.0, True),
        (100_000, 0.25, True),
    ],
)
def test_it_measures_again_when_sizes_or_times_change_fourfold(
    message_bytes: int, task_s: float, again: bool
) -> None:
    auto = Auto(least=4)
    for slots in (4, 8):
        auto.next(seen(level(slots, 4.0), message_bytes=100_000), now_s=0.0, bound=FREE, held_back=False)
    later = Seen(Level(4, 4 / task_s, [task_s] * 10), [message_bytes] * 10)
    assert auto.next(later, now_s=AGAIN_S - 1, bound=FREE, held_back=False) is None
    step = auto.next(later, now_s=AGAIN_S, bound=FREE, held_back=False)
    assert (step is not None) is again
    if step is not None:
        assert (step.slots, step.settled) == (4, False)
        assert run(auto, serving(16))[1].slots == 16


@pytest.mark.parametrize(
    ("message_bytes", "task_s", "again"), [(2_000_000, 1.0, True), (100_000, 8.0, False)]
)
def test_larger_messages_are_measured_again_where_memory_holds_the_slots_back(
    message_bytes: int, task_s: float, again: bool
) -> None:
    """With other slots than were settled on, times are others anyway: sizes are not."""
    auto = Auto(least=4)
    for slots in (4, 8, 16):
        measured = seen(level(slots, slots), message_bytes=100_000)
        auto.next(measured, now_s=0.0, bound=Bound(16, "memory"), held_back=False)
    later = Seen(Level(7, 7 / task_s, [task_s] * 10), [message_bytes] * 10)
    step = auto.next(later, now_s=AGAIN_S, bound=Bound(7, "memory"), held_back=True)
    assert (step is not None) is again
    if step is not None:
        assert (step.slots, step.settled) == (4, False)
        assert run(auto, serving(1000), Bound(7, "memory"))[1].slots == 7


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_short_and_long_tasks_mixed_are_no_change(share: float) -> None:
    """A window has more of these, the next one more of those: its median jumps from one to the other."""
    dice = random.Random(1)

    def mixed() -> Seen:
        times_s = [1.0 if dice.random() < share else 0.1 for _ in range(12)]
        return Seen(Level(4, 12 / sum(times_s), times_s), [1000] * 12)

    auto = Auto(least=4)
    auto.next(mixed(), now_s=0.0, bound=Bound(4, "MAX"), held_back=False)
    jumps = [
        auto.next(mixed(), now_s=number * AGAIN_S, bound=Bound(4, "MAX"), held_back=False)
        for number in range(1, 200)
    ]
    assert sum(jump is not None for jump in jumps) <= 2


@pytest.mark.parametrize(("busy", "failed"), [(10, 0), (0, 10)])
def test_a_server_that_was_of_no_use_is_measured_once_it_serves(busy: int, failed: int) -> None:
    auto = Auto(least=4)
    of_no_use = seen(level(4, 4.0, busy=busy, failed=failed))
    step = auto.next(of_no_use, now_s=0.0, bound=FREE, held_back=False)
    assert step is not None
    assert step.settled
    assert auto.next(of_no_use, now_s=AGAIN_S, bound=FREE, held_back=False) is None
    assert auto.next(seen(level(4, 4.0)), now_s=AGAIN_S - 1, bound=FREE, held_back=False) is None
    step = auto.next(seen(level(4, 4.0)), now_s=2 * AGAIN_S, bound=FREE, held_back=False)
    assert step is not None
    assert (step.slots, step.settled) == (4, False)
    assert run(auto, serving(16))[1].slots == 16


def test_memory_that_is_short_for_a_while_does_not_lower_the_least() -> None:
    auto = Auto(least=4)
    assert auto.next(seen(level(2, 2.0)), now_s=0.0, bound=FREE, held_back=True) is None
    assert run(auto, serving(16))[1].slots == 16
