from __future__ import annotations

import pytest

from benchmarks.steady import steady_share


def waves(number: int, *, slots: int, held_s: float, ramp_s: float = 0.0) -> list[float]:
    """Return when tasks end that each slot does one after the other, the slots staggered over the ramp."""
    return [ramp_s * slot / slots + held_s * (wave + 1) for wave in range(number) for slot in range(slots)]


@pytest.mark.parametrize("ramp_s", [0.0, 0.9], ids=["all at once", "staggered"])
def test_slots_that_never_wait_reach_all_of_the_ideal(ramp_s: float) -> None:
    done_at = waves(7, slots=20, held_s=1.0, ramp_s=ramp_s)
    assert steady_share(done_at, tasks=140, slots=20, held_s=1.0) == pytest.approx(1.0, abs=0.001)


def test_what_a_slot_loses_between_two_tasks_is_missing() -> None:
    done_at = waves(7, slots=20, held_s=1.25)
    assert steady_share(done_at, tasks=140, slots=20, held_s=1.0) == pytest.approx(0.8)


def test_neither_a_slow_start_nor_a_slow_end_counts() -> None:
    done_at = waves(5, slots=20, held_s=1.0)
    done_at[:19] = [-30.0] * 19
    done_at[-20:] = [90.0] * 20
    assert steady_share(done_at, tasks=100, slots=20, held_s=1.0) == pytest.approx(1.0)


def test_a_worker_that_is_not_waited_for_is_measured_to_its_last_result() -> None:
    done_at = waves(7, slots=20, held_s=2.0)[:80]
    assert steady_share(done_at, tasks=140, slots=20, held_s=1.0) == pytest.approx(0.5)


def test_waves_that_get_wider_count_by_their_middle() -> None:
    done_at = [
        1.02 * (wave + 1) + 0.04 * wave * (slot / 20 - 0.475) for wave in range(7) for slot in range(20)
    ]
    assert steady_share(done_at, tasks=140, slots=20, held_s=1.0) == pytest.approx(1 / 1.02)


@pytest.mark.parametrize("results", [0, 19, 40], ids=["none", "not every slot", "two for each slot"])
def test_without_a_window_there_is_no_share(results: int) -> None:
    done_at = waves(7, slots=20, held_s=1.0)[:results]
    assert steady_share(done_at, tasks=140, slots=20, held_s=1.0) is None
