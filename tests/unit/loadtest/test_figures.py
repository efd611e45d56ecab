"""From samples and results to the figures of the report."""

from __future__ import annotations

import pytest

from forwarder.loadtest.figures import FIGURES, Sample, failures, figures, middle, percentile, sampled
from forwarder.loadtest.processes import Look, ProcessLook
from forwarder.loadtest.traffic import Ended

MIB = 1024 * 1024
EVENTS = {"grow": 2, "hold": 1, "shrink": 0, "block": 1, "kills": 0, "pressure": 0}


def process(pid: int, rss_mb: int, unique_mb: int) -> ProcessLook:
    return ProcessLook(
        pid=pid,
        rss_bytes=rss_mb * MIB,
        unique_bytes=unique_mb * MIB,
        proportional_bytes=(unique_mb + 5) * MIB,
        descriptors=10,
        connections=2,
    )


def sample(at_s: float, done: int, *processes: ProcessLook, sent: int = 4) -> Sample:
    return sampled(at_s, sent=sent, done=done, look=Look(processes=processes), in_flight=done, events=EVENTS)


def task(sent_at: float, done_at: float, code: str | None = None) -> Ended:
    return Ended(sent_at=sent_at, done_at=done_at, state="FAILURE" if code else "SUCCESS", code=code)


def test_a_sample_has_sums_and_the_largest_child() -> None:
    seen = sample(1.0, 0, process(1, 60, 40), process(2, 50, 20), process(3, 55, 30))
    assert (seen.processes, seen.rss_mb, seen.unique_mb, seen.proportional_mb) == (3, 165, 90, 105)
    assert (seen.main_rss_mb, seen.child_rss_mb, seen.child_unique_mb) == (60, 55, 30)
    assert (seen.descriptors, seen.connections) == (30, 6)


@pytest.mark.parametrize("look", [None, Look(processes=())])
def test_of_a_worker_that_is_not_seen_only_the_tasks_are_known(look: Look | None) -> None:
    seen = sampled(1.0, sent=4, done=2, look=look, in_flight=None, events=None)
    assert (seen.done, seen.processes, seen.rss_mb) == (2, None, None)


def test_memory_is_told_at_the_start_at_mid_load_and_at_its_peak() -> None:
    samples = [
        sample(0, 0, process(1, 50, 30)),
        sample(1, 2, process(1, 50, 30), process(2, 40, 25)),
        sample(2, 3, process(1, 50, 30), process(2, 70, 55), process(3, 40, 25)),
        sample(3, 4, process(1, 50, 30), process(2, 45, 30)),
    ]
    found = figures(samples, [], sent=4, limit_mb=1000)
    assert [found[f"rss_{moment}_mb"] for moment in ("startup", "mid", "peak")] == [50, 90, 160]
    assert [found[f"child_unique_{moment}_mb"] for moment in ("startup", "mid", "peak")] == [25, 25, 55]
    assert found["workers_peak"] == 2
    assert found["memory_share_peak_percent"] == pytest.approx(100 * (110 + 15) / 1000)
    assert (found["descriptors_startup"], found["descriptors_peak"], found["descriptors_end"]) == (10, 30, 20)


def test_tasks_are_told_by_their_results() -> None:
    ended = [task(10, 12), task(11, 30), task(11, 13, "expired")]
    found = figures([sample(0, 0, process(1, 1, 1))], ended, sent=4, limit_mb=None)
    assert (found["sent"], found["succeeded"], found["failed"], found["missing"]) == (4, 2, 1, 1)
    assert found["completion_s"] == 20
    assert found["tasks_per_s"] == 3 / 20
    assert (found["latency_p50_s"], found["latency_p99_s"]) == (2, 19)
    assert found["memory_share_peak_percent"] is None


def test_what_was_not_seen_is_none_and_not_zero() -> None:
    samples = [sampled(0, sent=0, done=0, look=None, in_flight=None, events=None)]
    found = figures(samples, [], sent=0, limit_mb=None)
    for name in ("rss_peak_mb", "workers_peak", "grow", "kills", "descriptors_peak", "completion_s"):
        assert found[name] is None


def test_every_figure_that_the_report_shows_is_computed() -> None:
    found = figures([sample(0, 0, process(1, 1, 1))], [task(1, 2)], sent=1, limit_mb=1)
    assert {name for names in FIGURES.values() for name in names} == set(found)


@pytest.mark.parametrize(("events", "kills"), [(EVENTS, 1), ({**EVENTS, "kills": 2}, 3), (None, 1)])
def test_a_worker_that_is_gone_is_a_kill_whoever_tells_of_its_children(
    events: dict[str, int] | None, kills: int
) -> None:
    there, gone = Look(processes=(process(1, 50, 30),)), Look(processes=(), gone=True)
    samples = [
        sampled(at_s, sent=4, done=0, look=look, in_flight=None, events=events)
        for at_s, look in enumerate((there, gone, gone))
    ]
    assert figures(samples, [], sent=4, limit_mb=None)["kills"] == kills


def test_failures_are_counted_by_code_the_most_frequent_first() -> None:
    ended = [task(0, 1, "expired"), task(0, 1, "internal"), task(0, 1, "internal"), task(0, 1)]
    assert list(failures(ended).items()) == [("internal", 2), ("expired", 1)]


def test_mid_load_is_when_half_of_what_ends_has_ended() -> None:
    samples = [sample(at, done) for at, done in ((0, 0), (1, 1), (2, 5), (3, 9), (4, 10))]
    found = middle(samples)
    assert found is not None
    assert found.at_s == 2
    assert middle([sample(0, 0)]) is None


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (99, 10), (1, 1)])
def test_percentiles_are_values_that_came(percent: int, value: float) -> None:
    assert percentile(list(range(10, 0, -1)), percent) == value
