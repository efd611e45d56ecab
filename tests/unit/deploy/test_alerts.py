"""Every alert asks for metrics that exist, and leads to an entry of the runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability.__main__ import RUNBOOK, files
from deploy.observability.alerts import ALERTS, Alert
from forwarder.telemetry.catalogue import BY_NAME
from tests.promql import Asked, asked_by_datadog, asked_by_prometheus

ROOT = Path(__file__).parents[3]
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/alerts/forwarder.rules.yaml").read_text())
MONITORS: list[dict[str, Any]] = json.loads((ROOT / "deploy/datadog/monitors.json").read_text())
SCRAPED = {"job", "instance", "namespace"}
TAGGED = {"service", "host"}

each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


def entries() -> dict[str, str]:
    """Return the runbook's entries by the anchors that MkDocs gives to their headings."""
    texts = re.split(r"^## ", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)[1:]
    return {re.sub(r"\W+", "-", text.partition("\n")[0].lower()): text for text in texts}


def check(asked: Asked, own: set[str]) -> None:
    assert asked.metrics, "it asks for nothing"
    assert set(asked.metrics) <= set(BY_NAME), "it asks for a metric that does not exist"
    labels = {label for name in asked.metrics for label in BY_NAME[name].labels}
    assert asked.labels <= own | labels, "it asks for a label that its metrics don't have"


@each_alert
def test_prometheus_asks_for_metrics_and_labels_that_exist(alert: Alert) -> None:
    check(asked_by_prometheus(alert.prometheus), SCRAPED)


@each_alert
def test_datadog_asks_for_metrics_and_tags_that_exist(alert: Alert) -> None:
    check(asked_by_datadog(alert.datadog), TAGGED)


@each_alert
def test_both_ask_for_the_same_metrics(alert: Alert) -> None:
    prometheus = asked_by_prometheus(alert.prometheus).metrics
    assert set(prometheus) == set(asked_by_datadog(alert.datadog).metrics)


@each_alert
def test_its_entry_of_the_runbook_names_it(alert: Alert) -> None:
    assert f"`{alert.name}`" in entries()[alert.entry]


def test_every_rule_says_how_severe_it_is_and_links_to_the_runbook() -> None:
    (group,) = RULES["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert url == RUNBOOK
        assert anchor in entries()


def test_every_monitor_alerts_at_its_querys_threshold_and_links_to_the_runbook() -> None:
    assert len(MONITORS) == len(ALERTS)
    for monitor in MONITORS:
        assert monitor["query"].endswith(f" {monitor['options']['thresholds']['critical']:g}")
        assert monitor["message"].rpartition("#")[2] in entries()


def test_the_operators_resource_holds_the_same_rules() -> None:
    resource = yaml.safe_load((ROOT / "deploy/alerts/prometheusrule.yaml").read_text())
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == RULES


def test_the_runbook_may_be_served_anywhere() -> None:
    made = files("https://docs.example.com/on-call/")
    for name in ("alerts/forwarder.rules.yaml", "datadog/monitors.json"):
        assert "https://docs.example.com/on-call/#a-worker-is-stuck" in made[name]
        assert RUNBOOK not in made[name]


def test_the_page_about_alerts_lists_each_with_its_severity() -> None:
    page = (ROOT / "docs/dashboards.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\]\(runbook\.md#([\w-]+)\) \| (\w+) \|", page, flags=re.MULTILINE)
    assert rows == [(alert.name, alert.entry, alert.severity) for alert in ALERTS]
