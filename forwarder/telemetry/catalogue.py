"""Every metric of the worker: the one table that exporters, documentation, dashboards and alerts go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric under its Prometheus name; DogStatsD has it with dots, and without ``_total``.

    No label takes values from outside: ``queue`` is one that the worker consumes, ``status`` an
    HTTP status, ``code`` and the rest words from a fixed list.
    """

    name: str
    kind: Kind
    unit: Unit
    labels: tuple[str, ...]
    meaning: str

    @property
    def statsd_name(self) -> str:
        """Return the name under which DogStatsD gets it: ``forwarder.tasks``, say."""
        return self.name.removesuffix("_total").replace("_", ".", 1)


CATALOGUE = (
    Metric(
        "forwarder_tasks_total",
        "counter",
        "",
        ("queue", "outcome"),
        "Tasks that ended: `success`, the code of a failure, `revoked`, or `requeued`.",
    ),
    Metric(
        "forwarder_task_seconds",
        "histogram",
        "seconds",
        ("queue",),
        "From the arrival that the producer wrote to the stored result; only tasks that carry one.",
    ),
    Metric(
        "forwarder_inference_seconds",
        "histogram",
        "seconds",
        ("status",),
        "One call of the inference server, from its first byte sent to its last byte read.",
    ),
    Metric("forwarder_inflight", "gauge", "", (), "Messages held and not yet settled."),
    Metric(
        "forwarder_concurrency_limit", "gauge", "", (), "Tasks that may run at the same time at this moment."
    ),
    Metric(
        "forwarder_deliveries_total",
        "counter",
        "",
        ("queue", "kind"),
        "Messages that a slot took up: `first`, `redelivered`; and `dead`: put aside, into the dead letters.",
    ),
    Metric(
        "forwarder_hook_total",
        "counter",
        "",
        ("hook", "outcome"),
        "Hooks that ran: `ok`, `skipped` (nothing to do), `failed`.",
    ),
    Metric(
        "forwarder_hook_backlog", "gauge", "", ("hook",), "Tasks whose hook waits or runs at this moment."
    ),
    Metric("forwarder_aws_client_builds_total", "counter", "", ("service",), "AWS clients that were built."),
    Metric(
        "forwarder_aws_calls_total",
        "counter",
        "",
        ("service", "operation"),
        "Requests to AWS, each try of one counted.",
    ),
    Metric(
        "forwarder_queue_depth",
        "gauge",
        "",
        ("queue",),
        "Messages that wait in the queue, those in flight not counted.",
    ),
    Metric(
        "forwarder_queue_oldest_seconds",
        "gauge",
        "seconds",
        ("queue",),
        "Age of the message that is next in the queue; only where the broker or the message tells it.",
    ),
    Metric(
        "forwarder_memory_bytes",
        "gauge",
        "bytes",
        ("kind",),
        "Memory: `used` (of the container, or of the worker's processes without one), `limit`, `rss` (of the "
        "main process).",
    ),
    Metric(
        "forwarder_pool_size",
        "gauge",
        "",
        ("state",),
        "Slots (gevent) or children (prefork): `busy`, `idle`.",
    ),
    Metric(
        "forwarder_autoscale_decisions_total",
        "counter",
        "",
        ("action", "reason"),
        "Decisions of the prefork autoscaler.",
    ),
    Metric(
        "forwarder_dependency_up",
        "gauge",
        "",
        ("dependency",),
        "1 when `broker`, `inference` or `results` (the result store) was reached at the last look and did "
        "what it was asked, else 0.",
    ),
    Metric("forwarder_live", "gauge", "", (), "1 while /livez answers 200, else 0."),
    Metric(
        "forwarder_loop_lag_seconds",
        "gauge",
        "seconds",
        (),
        "How late the consumer's loop turned last, or how long it has not turned.",
    ),
    Metric("forwarder_info", "gauge", "", ("version", "pool", "broker"), "Always 1."),
)

#: Upper bounds of the histograms' buckets in seconds: from a cache hit to a task of an hour.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
