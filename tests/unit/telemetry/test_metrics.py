"""The table of numbers that tasks write into and exporters read."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forwarder.telemetry.catalogue import BUCKETS_S, BY_NAME
from forwarder.telemetry.metrics import OTHER, SERIES_MAX, VALUE_CHARS_MAX, ProcessMetrics

SOURCES = sorted((Path(__file__).parents[3] / "forwarder").rglob("*.py"))
TASKS, SECONDS = "forwarder_tasks_total", "forwarder_task_seconds"
#: A metric's kind to the method that writes it.
METHODS = {"counter": "count", "histogram": "observe", "gauge": "change"}


def test_counters_and_histograms_are_kept_by_label_in_whatever_order_it_is_given() -> None:
    metrics = ProcessMetrics()
    metrics.count(TASKS, queue="a", outcome="success")
    metrics.count(TASKS, 2, outcome="success", queue="a")
    metrics.observe(SECONDS, 1.5, queue="a")
    metrics.observe(SECONDS, 0.5, queue="a")
    assert metrics.value(TASKS, queue="a", outcome="success") == 3
    assert metrics.value(TASKS, queue="b", outcome="success") == 0
    assert metrics.snapshot() == {
        "forwarder_tasks_total{queue=a,outcome=success}": 3,
        "forwarder_task_seconds{queue=a}_count": 2,
        "forwarder_task_seconds{queue=a}_sum": 2.0,
    }


def test_a_measurement_is_in_the_first_bucket_whose_bound_it_does_not_pass() -> None:
    metrics = ProcessMetrics()
    for seconds in (0.0, 0.005, 0.0051, 3600, 3601):
        metrics.observe(SECONDS, seconds, queue="a")
    (cell,) = metrics.histograms()
    assert (cell.buckets[0], cell.buckets[1], cell.buckets[-2], cell.buckets[-1]) == (2, 1, 1, 1)
    assert len(cell.buckets) == len(BUCKETS_S) + 1


@pytest.mark.parametrize(
    ("method", "name", "labels"),
    [
        ("count", "forwarder_tasks", {"queue": "q", "outcome": "success"}),
        ("count", TASKS, {"queue": "q"}),
        ("count", TASKS, {"queue": "q", "outcome": "success", "task_id": "t"}),
        ("count", SECONDS, {"queue": "q"}),
        ("observe", TASKS, {"queue": "q", "outcome": "success"}),
        ("change", TASKS, {"queue": "q", "outcome": "success"}),
    ],
)
def test_what_the_catalogue_has_not_is_refused(method: str, name: str, labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="in the catalogue"):
        getattr(ProcessMetrics(), method)(name, 1, **labels)


def written() -> Iterator[tuple[str, str, str, set[str]]]:
    """Yield where each number is written, by which method, under which name and labels."""
    for path in SOURCES:
        text = path.read_text()
        if "forwarder_" not in text or not any(f".{method}(" in text for method in METHODS.values()):
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=method), args=[ast.Constant(value=str(name)), *_], keywords=labels
                ) if method in METHODS.values() and name.startswith("forwarder_"):
                    yield f"{path.name}:{node.lineno}", method, name, {str(each.arg) for each in labels}


def test_every_number_that_the_code_writes_is_in_the_catalogue_so_that_no_task_meets_the_refusal() -> None:
    found = list(written())
    assert len(found) > 10
    for where, method, name, labels in found:
        metric = BY_NAME.get(name)
        assert metric is not None, where
        assert (METHODS[metric.kind], set(metric.labels)) == (method, labels), where


def test_more_series_than_can_be_meant_are_counted_as_one() -> None:
    metrics = ProcessMetrics()
    for number in range(SERIES_MAX + 5):
        metrics.count(TASKS, queue="q", outcome=str(number))
    assert metrics.value(TASKS, queue=OTHER, outcome=OTHER) == 5
    assert len(metrics.sums("counter")) == SERIES_MAX + 1
    metrics.count(TASKS, queue="q", outcome="3")
    assert metrics.value(TASKS, queue="q", outcome="3") == 2
    metrics.count("forwarder_hook_total", hook="a", outcome="ok")
    assert metrics.value("forwarder_hook_total", hook="a", outcome="ok") == 1


def test_an_endless_label_value_is_counted_and_not_kept() -> None:
    metrics = ProcessMetrics()
    for _ in range(2):
        metrics.count(TASKS, queue="q" * (VALUE_CHARS_MAX + 1), outcome="success")
    assert metrics.snapshot() == {"forwarder_tasks_total{queue=other,outcome=other}": 2}
    assert not metrics._sums_by_call


def test_what_was_taken_can_be_added_elsewhere_and_is_here_no_more() -> None:
    child, main = ProcessMetrics(samples_max=2), ProcessMetrics(samples_max=4)
    for _ in range(2):
        child.count(TASKS, queue="q", outcome="success")
        child.observe(SECONDS, 0.3, queue="q")
        child.change("forwarder_hook_backlog", 1, hook="a")
        main.add(*child.take())
    assert child.take() == ([], [])
    assert main.snapshot() == {
        "forwarder_tasks_total{queue=q,outcome=success}": 2,
        "forwarder_hook_backlog{hook=a}": 2,
        "forwarder_task_seconds{queue=q}_count": 2,
        "forwarder_task_seconds{queue=q}_sum": 0.6,
    }
    assert list(main.histograms()[0].samples) == [0.3, 0.3]


def test_nothing_is_lost_where_threads_count_at_a_time() -> None:
    metrics = ProcessMetrics()
    begin = threading.Barrier(4)

    def count() -> None:
        begin.wait()
        for _ in range(2000):
            metrics.count(TASKS, queue="q", outcome="success")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value(TASKS, queue="q", outcome="success") == 8000


def test_measurements_are_kept_for_who_asks_for_them_the_newest_ones() -> None:
    none, some = ProcessMetrics(), ProcessMetrics(samples_max=2)
    for metrics in (none, some):
        for seconds in (1.0, 2.0, 3.0):
            metrics.observe(SECONDS, seconds, queue="q")
    assert not none.histograms()[0].samples
    assert list(some.histograms()[0].samples) == [2.0, 3.0]


def test_a_change_of_a_level_is_told_at_once() -> None:
    told = []
    metrics = ProcessMetrics(
        level_changed=lambda: told.append(metrics.value("forwarder_hook_backlog", hook="a"))
    )
    metrics.change("forwarder_hook_backlog", 1, hook="a")
    metrics.count(TASKS, queue="q", outcome="success")
    metrics.change("forwarder_hook_backlog", -1, hook="a")
    assert told == [1, 0]
