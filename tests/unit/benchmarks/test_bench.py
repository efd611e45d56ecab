from __future__ import annotations

import pytest

from benchmarks import bench
from benchmarks.bench import OURS, Cell, guard, plan
from benchmarks.redis_path import Figures
from benchmarks.report import REFERENCE, Row, medians
from benchmarks.systems import FLOORS, SYSTEMS

BOTH = {"p50_ms": None, "p99_ms": None, "paced_per_s": None, "cpu_ms_1s": None, "ideal_1s": None}
REST = BOTH | {"rss_mib": None, "unique_mib": None}


def row(system: str, cpu_ms: float, *, in_flight: int = 50) -> Row:
    return {"system": system, "in_flight": in_flight, "cpu_ms_0s": cpu_ms, "tasks_per_s_0s": 100.0, **REST}


def failed(system: str) -> Row:
    return {"system": system, "in_flight": 50, "failed": "StartFailed"}


def test_medians_come_with_their_lowest_and_highest_and_a_ratio_to_the_reference() -> None:
    rows = [row(OURS, cpu_ms) for cpu_ms in (1.0, 1.5, 1.1)] + [row(REFERENCE, 4.4)]
    ours, _ = medians(rows)
    assert (ours["cpu_ms_0s"], ours["spread"]["cpu_ms_0s"], ours["runs"]) == (1.1, [1.0, 1.5], 3)
    assert ours["ratio"] == pytest.approx(0.25)
    assert ours["p50_ms"] is None


def test_a_run_that_failed_leaves_the_others_and_says_why() -> None:
    (found,) = medians([row(OURS, 1.0), failed(OURS)])
    assert (found["cpu_ms_0s"], found["runs"], found["failed"]) == (1.0, 1, ["StartFailed"])


def test_numbers_in_flight_are_not_mixed() -> None:
    found = medians([row(OURS, 1.0), row(OURS, 2.0, in_flight=256), row(REFERENCE, 4.0, in_flight=256)])
    assert [(each["in_flight"], each["ratio"]) for each in found] == [(50, None), (256, 0.5), (256, 1.0)]


@pytest.mark.parametrize(
    ("ours", "status"),
    [(row(OURS, 1.9), 0), (row(OURS, 2.1), 1), (failed(OURS), 1)],
    ids=["within", "dearer", "not measured"],
)
def test_the_guard_fails_when_the_forwarder_is_dearer_than_allowed_or_was_not_measured(
    ours: Row, status: int
) -> None:
    assert guard(medians([ours, row(REFERENCE, 4.0)])) == status


def test_everything_is_measured_once_before_anything_is_repeated() -> None:
    cells = plan((*SYSTEMS, *FLOORS), runs=3, in_flight=[50, 256], rounds_1s=7, whole=False)
    first = [cell for cell in cells if cell.run == 0]
    assert cells[: len(first)] == first
    assert {cell.in_flight for cell in first} == {50, 256}
    assert all(cell.rounds_1s for cell in first)


def test_repetitions_are_of_the_first_number_in_flight_and_of_the_forwarder() -> None:
    cells = plan((*SYSTEMS, *FLOORS), runs=2, in_flight=[50, 256], rounds_1s=7, whole=False)
    again = [cell for cell in cells if cell.run == 1]
    assert [cell.system.name for cell in again if cell.in_flight == 256] == [OURS]
    assert {cell.system.name for cell in again if cell.rounds_1s} == {OURS}
    assert len(again) == len(SYSTEMS) + len(FLOORS) + 1


def test_children_by_the_hundred_are_not_measured() -> None:
    cells = plan(SYSTEMS, runs=2, in_flight=[50, 256], rounds_1s=7, whole=True)
    assert not [cell for cell in cells if cell.in_flight == 256 and "prefork" in cell.system.name]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure nothing: the forwarder fails, the others have figures; return who was asked."""
    asked: list[str] = []

    def one(_: object, cell: Cell, **__: object) -> Figures:
        asked.append(cell.system.name)
        if cell.system.name == OURS:
            raise TimeoutError("3 of 9 results did not come")
        return Figures(cpu_ms_0s=1.0, tasks_per_s_0s=100.0)

    monkeypatch.setattr(bench, "services", lambda _: iter([None]))
    monkeypatch.setattr(bench, "one", one)
    return asked


def test_a_worker_that_fails_has_a_row_and_the_others_are_measured(measured: list[str]) -> None:
    cells = plan(SYSTEMS, runs=1, in_flight=[50], rounds_1s=0, whole=True)
    rows = bench.run(cells, tasks=1, paced_s=0.0, until=float("inf"))
    assert [row["system"] for row in rows if "failed" in row] == [OURS]
    assert rows[0]["failed"].endswith("3 of 9 results did not come")
    assert len(measured) == len(rows) == len(SYSTEMS)


def test_nothing_begins_when_the_time_is_over(measured: list[str]) -> None:
    cells = plan(SYSTEMS, runs=1, in_flight=[50], rounds_1s=0, whole=True)
    assert bench.run(cells, tasks=1, paced_s=0.0, until=0.0) == []
    assert measured == []
