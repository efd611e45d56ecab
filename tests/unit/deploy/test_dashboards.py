"""No panel asks for what the table of metrics does not have, and none of the table is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.observability import queries
from deploy.observability.__main__ import files, main
from deploy.observability.panels import ROWS
from forwarder.telemetry.catalogue import BY_NAME, CATALOGUE
from tests.promql import Asked, asked_by_datadog, asked_by_prometheus

ROOT = Path(__file__).parents[3]
GRAFANA: dict[str, Any] = json.loads((ROOT / "deploy/grafana/forwarder.json").read_text())
DATADOG: dict[str, Any] = json.loads((ROOT / "deploy/datadog/dashboard.json").read_text())
#: What Prometheus and its scraping add to every metric.
SCRAPED = {"job", "instance", "namespace", "le"}
#: Datadog's own.
TAGGED = {"env", "service", "host"}


def charts() -> list[dict[str, Any]]:
    return [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]


def grafana_expressions() -> list[str]:
    return [target["expr"] for panel in charts() for target in panel["targets"]]


def grafana_variable_queries() -> list[str]:
    return [
        variable["query"]["query"].removeprefix("label_values(").rpartition(",")[0]
        for variable in GRAFANA["templating"]["list"]
        if variable["type"] == "query"
    ]


def datadog_queries() -> Iterator[str]:
    for group in DATADOG["widgets"]:
        for widget in group["definition"]["widgets"]:
            for request in widget["definition"]["requests"]:
                yield from (query["query"] for query in request["queries"])


def check(asked: Asked, own: set[str]) -> None:
    assert asked.metrics, "it asks for nothing"
    assert set(asked.metrics) <= set(BY_NAME), "it asks for a metric that does not exist"
    for name in asked.metrics:
        unknown = asked.labels - own - set(BY_NAME[name].labels)
        assert not unknown, f"{name} has no label {unknown}"


@pytest.mark.parametrize("expression", [*grafana_expressions(), *grafana_variable_queries()])
def test_grafana_asks_for_metrics_and_labels_that_exist(expression: str) -> None:
    check(asked_by_prometheus(expression), SCRAPED)


@pytest.mark.parametrize("query", list(datadog_queries()))
def test_datadog_asks_for_metrics_and_tags_that_exist(query: str) -> None:
    check(asked_by_datadog(query), TAGGED)


def test_every_metric_of_the_table_is_on_both_dashboards() -> None:
    everything = {metric.name for metric in CATALOGUE}
    assert {
        name for text in grafana_expressions() for name in asked_by_prometheus(text).metrics
    } == everything
    assert {name for text in datadog_queries() for name in asked_by_datadog(text).metrics} == everything


def test_both_dashboards_have_the_same_panels() -> None:
    titles = [panel.title for row in ROWS for panel in row.panels]
    assert [chart["title"] for chart in charts()] == titles
    groups = (group["definition"]["widgets"] for group in DATADOG["widgets"])
    assert [widget["definition"]["title"] for group in groups for widget in group] == titles


def test_grafana_filters_by_variables_that_the_dashboard_has() -> None:
    variables = {variable["name"] for variable in GRAFANA["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(GRAFANA["panels"])))
    assert used <= variables | {"__rate_interval"}
    assert variables <= used


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_legend_names_labels_by_which_the_question_is_grouped() -> None:
    for row in ROWS:
        for panel in row.panels:
            for query in panel.queries:
                named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
                assert named <= asked_by_prometheus(query.prometheus).groups, panel.title


def test_a_question_for_an_unknown_metric_or_label_is_an_error_when_it_is_written() -> None:
    with pytest.raises(KeyError):
        queries.rate("forwarder_task_total")
    with pytest.raises(ValueError, match="has no label status"):
        queries.rate("forwarder_tasks_total", "status")


def test_the_files_are_what_the_tables_make() -> None:
    for name, text in files().items():
        assert (ROOT / "deploy" / name).read_text() == text, "run `python -m deploy.observability`"


def test_check_names_a_file_that_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "deploy/grafana/forwarder.json").write_text("{}")
    assert main(["--check"]) == 1
    assert "deploy/grafana/forwarder.json is out of date" in capsys.readouterr().err
