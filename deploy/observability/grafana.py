"""The Grafana dashboard, as Grafana 10 and later import it."""

from __future__ import annotations

from typing import Any

from deploy.observability.panels import ROWS, Panel, Unit

WIDTH, HEIGHT = 24, 8  # of Grafana's grid; a panel's height
UNITS: dict[Unit, str] = {
    "s": "s",
    "bytes": "bytes",
    "a second": "cps",
    "number": "short",
    "yes or no": "bool_yes_no",
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Of the metrics that have a queue: no task may have ended yet.
WITH_QUEUES = "forwarder_tasks_total|forwarder_deliveries_total|forwarder_queue_depth"


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON."""
    return {
        "uid": "forwarder",
        "title": "Forwarder",
        "description": "Made by `python -m deploy.observability`: edit deploy/observability/panels.py.",
        "tags": ["forwarder", "celery"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        _values("job", "Job", "label_values(forwarder_info, job)"),
        _values("instance", "Worker", 'label_values(forwarder_info{job=~"$job"}, instance)'),
        _values("queue", "Queue", f'label_values({{__name__=~"{WITH_QUEUES}", job=~"$job"}}, queue)'),
    ]


def _values(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,  # when the time range changes
        "sort": 1,
    }


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row.title,
                "gridPos": place,
                "panels": [],
                "collapsed": False,
            }
        )
        y += 1
        width = WIDTH // len(row.panels)
        for index, panel in enumerate(row.panels):
            place = {"x": index * width, "y": y, "w": width, "h": HEIGHT}
            made.append({"id": len(made) + 1, "gridPos": place, **_chart(panel)})
        y += HEIGHT
    return made


def _chart(panel: Panel) -> dict[str, Any]:
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    drawing = {
        "drawStyle": "line",
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": stacking,
    }
    field: dict[str, Any] = {"unit": UNITS[panel.unit], "min": 0}
    if panel.unit == "yes or no":
        field["max"] = 1
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": field | {"custom": drawing | {"fillOpacity": 30 if panel.stacked else 5}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": True},
        },
        "targets": [
            {
                "refId": "ABCDEF"[index],
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": query.prometheus,
                "legendFormat": query.legend or "__auto",
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
    }
