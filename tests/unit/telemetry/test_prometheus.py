"""The page of /metrics: what Prometheus reads is what was counted."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forwarder.telemetry.catalogue import BUCKETS_S, CATALOGUE
from forwarder.telemetry.gauges import Gauges, Reading, resident_bytes
from forwarder.telemetry.metrics import ProcessMetrics
from forwarder.telemetry.prometheus import CONTENT_TYPE, Exposition


class Scene:
    def __init__(self) -> None:
        self.metrics = ProcessMetrics()
        self.gauges = Gauges()
        self.page = Exposition(metrics=self.metrics, gauges=self.gauges)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return what a scraper reads."""
        text = self.page.render()[0].decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_counters_histograms_and_gauges_are_read_as_they_were_written(scene: Scene) -> None:
    scene.metrics.count("forwarder_tasks_total", 3, queue="q", outcome="success")
    for seconds in (0.004, 0.3, 7200.0):
        scene.metrics.observe("forwarder_inference_seconds", seconds, status="200")
    scene.gauges.add(lambda: [Reading("forwarder_inflight", 7)])
    samples = scene.samples()
    assert samples["forwarder_tasks_total", (("outcome", "success"), ("queue", "q"))] == 3
    assert samples["forwarder_inflight", ()] == 7
    status = ("status", "200")
    assert samples["forwarder_inference_seconds_count", (status,)] == 3
    assert samples["forwarder_inference_seconds_sum", (status,)] == pytest.approx(7200.304)
    buckets = [
        samples["forwarder_inference_seconds_bucket", (("le", str(float(bound))), status)]
        for bound in BUCKETS_S
    ]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (1, 2)
    assert samples["forwarder_inference_seconds_bucket", (("le", "+Inf"), status)] == 3


def test_help_and_type_of_every_metric_are_there_before_its_first_value(scene: Scene) -> None:
    lines = scene.page.render()[0].decode().splitlines()
    for metric in CATALOGUE:
        assert f"# TYPE {metric.name} {metric.kind}" in lines
        assert any(line.startswith(f"# HELP {metric.name} ") for line in lines)


def test_the_main_process_is_there_as_the_librarys_users_expect_it(scene: Scene) -> None:
    names = {name for name, _ in scene.samples()}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_info"} <= names


def test_a_page_opens_no_file_and_a_look_in_between_brings_it_up_to_date(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    really_open = builtins.open

    def noting(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return really_open(path, *args, **options)

    monkeypatch.setattr(builtins, "open", noting)
    scene.page.render()
    assert opened == []
    scene.page.refresh()
    assert opened


def test_a_label_cannot_forge_a_line(scene: Scene) -> None:
    forged = 'q"} 1\nforwarder_live 1\\'
    scene.metrics.count("forwarder_tasks_total", queue=forged, outcome="success")
    assert scene.samples()["forwarder_tasks_total", (("outcome", "success"), ("queue", forged))] == 1
    assert ("forwarder_live", ()) not in scene.samples()


def test_the_content_type_is_one_that_every_prometheus_takes(scene: Scene) -> None:
    assert scene.page.render()[1] == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_a_source_that_fails_takes_only_its_own_series_with_it(scene: Scene) -> None:
    def broken() -> Iterator[Reading]:
        yield Reading("forwarder_live", 1)
        raise OSError

    scene.gauges.add(broken)
    scene.gauges.add(lambda: [Reading("forwarder_inflight", 7)])
    gauges = {name: value for (name, _), value in scene.samples().items() if name.startswith("forwarder_")}
    assert gauges == {"forwarder_inflight": 7}


def test_what_two_sources_tell_of_one_gauge_is_added_up() -> None:
    gauges = Gauges()
    gauges.add(lambda: [Reading("forwarder_hook_backlog", 2, {"hook": "a"})])
    gauges.add(lambda: [Reading("forwarder_hook_backlog", 3, {"hook": "a"})])
    ((series, value),) = gauges.read()
    assert (str(series), value) == ("forwarder_hook_backlog{hook=a}", 5)


@pytest.mark.parametrize(
    "reading",
    [
        Reading("forwarder_depth", 1),
        Reading("forwarder_tasks_total", 1, {"queue": "q", "outcome": "success"}),
        Reading("forwarder_queue_depth", 1, {"topic": "q"}),
    ],
)
def test_a_gauge_that_the_catalogue_has_not_is_refused(reading: Reading) -> None:
    gauges = Gauges()
    gauges.add(lambda: [reading])
    with pytest.raises(ValueError, match="in the catalogue"):
        gauges.read()


def test_the_resident_memory_is_this_process() -> None:
    assert 5_000_000 < resident_bytes() < 10_000_000_000
