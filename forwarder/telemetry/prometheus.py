"""The numbers as Prometheus reads them; its own library writes the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from forwarder.telemetry.catalogue import BUCKETS_S, CATALOGUE
from forwarder.telemetry.gauges import Gauges
from forwarder.telemetry.metrics import Histogram, ProcessMetrics, Series

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: What every Prometheus takes; the text is the same under newer names of it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS = (*map(str, map(float, BUCKETS_S)), "+Inf")


class Exposition:
    """Writes the page of ``/metrics``: a metric's HELP and TYPE also before it has a value.

    Beside the catalogue's it has ``process_*`` of the main process and ``python_info``, as the
    library's users expect them. Takes no lock and does not block; any one thread may call it.
    """

    def __init__(self, *, metrics: ProcessMetrics, gauges: Gauges) -> None:
        from prometheus_client import PlatformCollector, ProcessCollector

        self._metrics = metrics
        self._gauges = gauges
        self._others = (ProcessCollector(registry=None), PlatformCollector(registry=None))
        self._of_the_process: list[Family] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at what the system tells of this process, to be called about once a second.

        Not at each scrape: it opens files, and for each of them the thread that serves the page gives
        the interpreter's lock away and waits 5 ms for it where the worker is busy.
        """
        self._of_the_process = [family for collector in self._others for family in collector.collect()]

    def render(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        from prometheus_client import generate_latest

        return generate_latest(self), CONTENT_TYPE

    def collect(self) -> Iterator[Family]:
        """Yield the families of samples: the library's interface of a registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counters = ((cell.series, float(cell.value)) for cell in self._metrics.sums("counter"))
        values = _by_name([*counters, *self._gauges.read()])
        histograms = self._metrics.histograms()
        for metric in CATALOGUE:
            text = metric.meaning.replace("`", "")
            if metric.kind == "histogram":
                measured = HistogramMetricFamily(metric.name, text, labels=metric.labels)
                for cell in histograms:
                    if cell.series.name == metric.name:
                        measured.add_metric(cell.series.values, _cumulative(cell), cell.sum)
                yield measured
            else:
                make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = make(metric.name, text, labels=metric.labels)
                for series, value in values.get(metric.name, ()):
                    family.add_metric(series.values, value)
                yield family
        yield from self._of_the_process


def _by_name(values: Iterable[tuple[Series, float]]) -> dict[str, list[tuple[Series, float]]]:
    found: dict[str, list[tuple[Series, float]]] = {}
    for series, value in sorted(values, key=lambda item: item[0].values):
        found.setdefault(series.name, []).append((series, value))
    return found


def _cumulative(cell: Histogram) -> list[tuple[str, float]]:
    return list(zip(BOUNDS, accumulate(cell.buckets.copy()), strict=True))
