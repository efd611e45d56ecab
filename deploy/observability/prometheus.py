"""The alerts as Prometheus' rule file, and as the Prometheus Operator's resource."""

from __future__ import annotations

from typing import Any

from deploy.observability.alerts import ALERTS, Alert


def rules(runbook: str) -> dict[str, Any]:
    """Return Prometheus' rule file; ``runbook`` is the URL of the page that docs/runbook.md is served as."""
    return {"groups": [{"name": "forwarder", "rules": [_rule(alert, runbook) for alert in ALERTS]}]}


def _rule(alert: Alert, runbook: str) -> dict[str, Any]:
    where = "{{ with $labels.queue }} (queue {{ . }}){{ end }}{{ with $labels.instance }} ({{ . }}){{ end }}"
    return {
        "alert": alert.name,
        "expr": alert.prometheus,
        "for": alert.held,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.title + where,
            "description": alert.advice,
            "runbook_url": alert.runbook_url(runbook),
        },
    }


def custom_resource(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the same rules as the Prometheus Operator's resource."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "forwarder", "labels": {"app.kubernetes.io/name": "forwarder"}},
        "spec": rules,
    }
