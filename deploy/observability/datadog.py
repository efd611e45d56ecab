"""The Datadog dashboard and monitors, as Datadog's API takes them."""

from __future__ import annotations

from typing import Any

from deploy.observability.alerts import ALERTS, Alert
from deploy.observability.panels import ROWS, Panel, Unit

UNITS: dict[Unit, dict[str, str]] = {
    "s": {"unit_name": "second"},
    "bytes": {"unit_name": "byte"},
    "a second": {"unit_name": "event", "per_unit_name": "second"},
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as ``POST /api/v1/dashboard`` takes it."""
    return {
        "title": "Forwarder",
        "description": "Made by `python -m deploy.observability`: edit deploy/observability/panels.py.",
        "layout_type": "ordered",
        "reflow_type": "auto",
        "template_variables": [
            {"name": name, "prefix": name, "available_values": [], "defaults": ["*"]}
            for name in ("env", "service", "host", "queue")
        ],
        "widgets": [
            {
                "definition": {
                    "type": "group",
                    "title": row.title,
                    "layout_type": "ordered",
                    "widgets": [{"definition": _chart(panel)} for panel in row.panels],
                }
            }
            for row in ROWS
        ],
    }


def _chart(panel: Panel) -> dict[str, Any]:
    names = [f"query{number}" for number in range(1, len(panel.queries) + 1)]
    unit = UNITS.get(panel.unit)
    formulas: list[dict[str, Any]] = []
    for name, query in zip(names, panel.queries, strict=True):
        formula: dict[str, Any] = {"formula": name}
        if "{{" not in query.legend:  # otherwise Datadog names each line by its tags
            formula["alias"] = query.legend
        if unit:
            formula["number_format"] = {"unit": {"type": "canonical_unit", **unit}}
        formulas.append(formula)
    return {
        "type": "timeseries",
        "title": panel.title,
        "show_legend": True,
        "legend_layout": "auto",
        "legend_columns": ["avg", "max", "value"],
        "requests": [
            {
                "response_format": "timeseries",
                "display_type": "area" if panel.stacked else "line",
                "queries": [
                    {"data_source": "metrics", "name": name, "query": query.datadog}
                    for name, query in zip(names, panel.queries, strict=True)
                ],
                "formulas": formulas,
            }
        ],
    }


def monitors(runbook: str) -> list[dict[str, Any]]:
    """Return the monitors, each as ``POST /api/v1/monitor`` takes one."""
    return [_monitor(alert, runbook) for alert in ALERTS]


def _monitor(alert: Alert, runbook: str) -> dict[str, Any]:
    threshold = float(alert.datadog.rpartition(" ")[2])
    return {
        "name": f"[forwarder] {alert.title}",
        "type": "query alert",
        "query": alert.datadog,
        "message": f"{alert.advice}\n\n{alert.runbook_url(runbook)}",
        "tags": ["app:forwarder", f"severity:{alert.severity}"],
        "priority": {"critical": 2, "warning": 3}[alert.severity],
        "options": {
            "thresholds": {"critical": threshold},
            "notify_no_data": False,  # a deployment that scales to zero reports nothing, and is well
            "require_full_window": False,
            "include_tags": True,
        },
    }
