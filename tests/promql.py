"""What an expression of Prometheus or of Datadog asks for: metrics of the catalogue, and labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import promql_parser

from forwarder.telemetry.catalogue import BY_NAME, CATALOGUE

PARTS_OF_A_HISTOGRAM = ("_bucket", "_count", "_sum")
BY_STATSD_NAME = {metric.statsd_name: metric.name for metric in CATALOGUE}


@dataclass(slots=True)
class Asked:
    """Metrics by the catalogue's names (an unknown one as it stands), and the expression's labels."""

    metrics: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)


def asked_by_prometheus(expression: str) -> Asked:
    """Return what a PromQL expression asks for. Raises ValueError for one that is none."""
    asked = Asked()
    tree = promql_parser.parse(expression.replace("$__rate_interval", "5m"))

    def visit(node: Any) -> bool:
        match node:
            case promql_parser.VectorSelector():
                _selected(node, asked)
            case promql_parser.MatrixSelector():
                _selected(node.vector_selector, asked)
            case promql_parser.AggregateExpr() if node.modifier is not None:
                asked.groups |= set(node.modifier.labels)
            case promql_parser.BinaryExpr() if node.modifier and node.modifier.matching:
                asked.labels |= set(node.modifier.matching.labels)
        return True

    promql_parser.walk(tree, pre_visit=visit)
    asked.labels |= asked.groups
    return asked


def _selected(selector: Any, asked: Asked) -> None:
    for matcher in selector.matchers.matchers:
        if matcher.name == "__name__":
            asked.metrics += matcher.value.split("|")
        else:
            asked.labels.add(matcher.name)
    if selector.name:
        asked.metrics.append(_of_a_histogram(selector.name))


def _of_a_histogram(name: str) -> str:
    for suffix in PARTS_OF_A_HISTOGRAM:
        metric = BY_NAME.get(name.removesuffix(suffix))
        if name.endswith(suffix) and metric and metric.kind == "histogram":
            return metric.name
    return name


def asked_by_datadog(query: str) -> Asked:
    """Return what a query of Datadog asks for: ``sum:NAME{TAG:VALUE,$VARIABLE} by {TAG}``, or several."""
    asked = Asked()
    for name, filters, groups in re.findall(r"\w+:([a-z_.]+)\{([^}]*)\}(?: by \{([^}]*)\})?", query):
        asked.metrics.append(BY_STATSD_NAME.get(name, name))
        filtered = (one.lstrip("!$").partition(":")[0] for one in filters.split(",") if one != "*")
        asked.groups |= {group for group in groups.split(",") if group}
        asked.labels |= {*filtered, *asked.groups}
    return asked
