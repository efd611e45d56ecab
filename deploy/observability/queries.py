"""Questions about the catalogue's metrics, in PromQL and in Datadog's words, side by side.

Asking for a metric, or by a label, that the catalogue does not have raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forwarder.telemetry.catalogue import BY_NAME, Metric

Aggregation = Literal["sum", "min", "max", "avg"]
#: A label, whether it is (``=``) or is none of (``!``), and the values. Datadog takes one value with ``=``.
Where = tuple[str, Literal["=", "!"], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question; ``legend`` names its line, with ``{{label}}`` for the values of labels."""

    legend: str
    prometheus: str
    datadog: str


def rate(name: str, *by: str, where: Where | None = None, legend: str = "") -> Query:
    """Ask how often a second a counter was raised, over all workers."""
    metric = _metric(name, by, where)
    grouped = _grouped("sum", by, f"rate({_selected(metric, where)}[$__rate_interval])")
    datadog = f"sum:{_filtered(metric, where, by)}.as_rate()"
    return Query(legend=legend or _legend(by), prometheus=grouped, datadog=datadog)


def gauge(
    name: str, *by: str, take: Aggregation = "sum", where: Where | None = None, legend: str = ""
) -> Query:
    """Ask for a gauge: its sum over all workers, or what else ``take`` says."""
    metric = _metric(name, by, where)
    return Query(
        legend=legend or _legend(by),
        prometheus=_grouped(take, by, _selected(metric, where)),
        datadog=f"{take}:{_filtered(metric, where, by)}",
    )


def percentiles(name: str, *by: str) -> tuple[Query, ...]:
    """Ask for the 50th, 95th and 99th percentile of a histogram."""
    metric = _metric(name, by, None)
    labels = " ".join(f"{{{{{label}}}}}" for label in by)
    buckets = _grouped("sum", ("le", *by), f"rate({_selected(metric, None, '_bucket')}[$__rate_interval])")
    return tuple(
        Query(
            legend=f"p{percent} {labels}".strip(),
            prometheus=f"histogram_quantile({percent / 100:g}, {buckets})",
            datadog=f"p{percent}:{_filtered(metric, None, by)}",
        )
        for percent in (50, 95, 99)
    )


def calls(name: str, *by: str) -> Query:
    """Ask how often a second a histogram was given a measurement."""
    metric = _metric(name, by, None)
    return Query(
        legend=_legend(by),
        prometheus=_grouped("sum", by, f"rate({_selected(metric, None, '_count')}[$__rate_interval])"),
        datadog=f"count:{_filtered(metric, None, by)}.as_rate()",
    )


def _metric(name: str, by: tuple[str, ...], where: Where | None) -> Metric:
    metric = BY_NAME[name]
    asked = {*by, *([where[0]] if where else [])} - {"instance"}
    if unknown := asked - set(metric.labels):
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}")
    return metric


def _selected(metric: Metric, where: Where | None, suffix: str = "") -> str:
    matchers = ['job=~"$job"', 'instance=~"$instance"']
    if "queue" in metric.labels:
        matchers.append('queue=~"$queue"')
    if where:
        label, sign, values = where
        operator = {"=": "=~", "!": "!~"}[sign] if len(values) > 1 else {"=": "=", "!": "!="}[sign]
        matchers.append(f'{label}{operator}"{"|".join(values)}"')
    return f"{metric.name}{suffix}{{{', '.join(matchers)}}}"


def _filtered(metric: Metric, where: Where | None, by: tuple[str, ...]) -> str:
    """Return name, filters and groups as Datadog writes them; a worker is a host to it."""
    filters = ["$env", "$service", "$host"]
    if "queue" in metric.labels:
        filters.append("$queue")
    if where:
        label, sign, values = where
        filters += [f"{'!' if sign == '!' else ''}{label}:{value}" for value in values]
    groups = ",".join("host" if label == "instance" else label for label in by)
    return f"{metric.statsd_name}{{{','.join(filters)}}}" + (f" by {{{groups}}}" if groups else "")


def _grouped(take: str, by: tuple[str, ...], inner: str) -> str:
    return f"{take} by ({', '.join(by)}) ({inner})" if by else f"{take}({inner})"


def _legend(by: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)
