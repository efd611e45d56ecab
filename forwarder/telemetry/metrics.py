"""The numbers of one process, kept from the first task on; exporters read them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from forwarder.telemetry.catalogue import BUCKETS_S, BY_NAME, Kind, Metric

#: Combinations of label values of one metric that are kept apart; all further ones are counted as ``other``.
#: No label takes its values from outside, so this is a net under mistakes.
SERIES_MAX = 1000
#: A longer label value counts as ``other``, too.
VALUE_CHARS_MAX = 100
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric with its label values, in the order of the catalogue's labels."""

    name: str
    values: tuple[str, ...]

    @property
    def metric(self) -> Metric:
        """Return its entry in the catalogue."""
        return BY_NAME[self.name]

    @property
    def labels(self) -> dict[str, str]:
        """Return label to value."""
        return dict(zip(self.metric.labels, self.values, strict=True))

    def __str__(self) -> str:
        pairs = ",".join(f"{label}={value}" for label, value in self.labels.items())
        return f"{self.name}{{{pairs}}}" if pairs else self.name


@dataclass(slots=True, eq=False)
class Sum:
    """A counter, or a level that goes up and down."""

    series: Series
    value: int = 0


@dataclass(slots=True, eq=False)
class Histogram:
    """Measurements by bucket, not cumulative: the last bucket is above every bound.

    ``samples`` are the newest measurements that no exporter has taken yet, none
    where nobody asked for them.
    """

    series: Series
    samples: deque[float]
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum: float = 0.0


Call = tuple[str, tuple[tuple[str, str], ...]]


class ProcessMetrics:
    """Counters, histograms and levels of one process, by the catalogue's names.

    Any thread or greenlet may count. Reading takes no lock: under gevent another
    native thread reads, and a lock of greenlets is not for it. So what is read while
    something is counted may have a measurement in its bucket and not yet in its sum.

    ``samples_max`` measurements of each histogram are kept for ``samples``;
    ``level_changed`` is called after each change of a level.
    """

    def __init__(self, *, samples_max: int = 0, level_changed: Callable[[], object] = lambda: None) -> None:
        self._samples_max = samples_max
        self._level_changed = level_changed
        self._lock = threading.Lock()
        self._sums: dict[Series, Sum] = {}
        self._histograms: dict[Series, Histogram] = {}
        self._numbers = Counter[str]()
        # As callers write them, to the same: a task must not sort and check labels.
        self._sums_by_call: dict[Call, Sum] = {}
        self._histograms_by_call: dict[Call, Histogram] = {}

    def count(self, name: str, value: int = 1, /, **labels: str) -> None:
        """Add to a counter. Never blocks. Raises ValueError for what the catalogue has not."""
        call = (name, tuple(labels.items()))
        cell = self._sums_by_call.get(call) or self._new_sum(call, "counter")
        with self._lock:
            cell.value += value

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add one measurement to a histogram. Never blocks. Raises ValueError as ``count`` does."""
        call = (name, tuple(labels.items()))
        cell = self._histograms_by_call.get(call) or self._new_histogram(call)
        with self._lock:
            cell.buckets[bisect_left(BUCKETS_S, value)] += 1
            cell.sum += value
            cell.samples.append(value)

    def change(self, name: str, by: int, /, **labels: str) -> None:
        """Raise or lower a gauge that counts what goes on at this moment. Raises as ``count`` does."""
        call = (name, tuple(labels.items()))
        cell = self._sums_by_call.get(call) or self._new_sum(call, "gauge")
        with self._lock:
            cell.value += by
        self._level_changed()

    def value(self, name: str, /, **labels: str) -> int:
        """Return a counter's or a level's value, 0 if it was never changed."""
        cell = self._sums.get(_series((name, tuple(labels.items()))))
        return cell.value if cell else 0

    def sums(self, kind: Kind) -> list[Sum]:
        """Return the counters, or the levels (``gauge``), as they are now."""
        return [cell for cell in self._sums.copy().values() if cell.series.metric.kind == kind]

    def histograms(self) -> list[Histogram]:
        """Return the histograms as they are now; taking from their ``samples`` takes them for good."""
        return list(self._histograms.copy().values())

    def add(self, sums: Iterable[Sum], histograms: Iterable[Histogram]) -> None:
        """Add what ``take`` returned, here or in another process. Raises as ``count`` does."""
        for part in sums:
            cell = self._sum_of(part.series)
            with self._lock:
                cell.value += part.value
        for measured in histograms:
            histogram = self._histogram_of(measured.series)
            with self._lock:
                for place, number in enumerate(measured.buckets):
                    histogram.buckets[place] += number
                histogram.sum += measured.sum
                histogram.samples.extend(measured.samples)

    def take(self) -> tuple[list[Sum], list[Histogram]]:
        """Return what was counted since the last call, and begin anew: for the process that sums up."""
        with self._lock:
            sums = [Sum(cell.series, cell.value) for cell in self._sums.values() if cell.value]
            histograms = [
                Histogram(cell.series, cell.samples.copy(), cell.buckets.copy(), cell.sum)
                for cell in self._histograms.values()
                if any(cell.buckets)
            ]
            for cell in self._sums.values():
                cell.value = 0
            for histogram in self._histograms.values():
                histogram.samples.clear()
                histogram.buckets[:] = [0] * len(histogram.buckets)
                histogram.sum = 0.0
        return sums, histograms

    def snapshot(self) -> dict[str, float]:
        """Return every counter, level and histogram as ``name{label=value}`` to number."""
        flat: dict[str, float] = {str(cell.series): cell.value for cell in self._sums.copy().values()}
        for cell in self.histograms():
            flat[f"{cell.series}_count"] = sum(cell.buckets)
            flat[f"{cell.series}_sum"] = cell.sum
        return flat

    def _new_sum(self, call: Call, kind: Kind) -> Sum:
        """Return the counter or level of a call whose words are new, made if need be."""
        cell = self._sum_of(_series(call, kind))
        if OTHER not in cell.series.values:  # behind which there may be any number of them
            self._sums_by_call[call] = cell
        return cell

    def _new_histogram(self, call: Call) -> Histogram:
        cell = self._histogram_of(_series(call, "histogram"))
        if OTHER not in cell.series.values:
            self._histograms_by_call[call] = cell
        return cell

    def _sum_of(self, series: Series) -> Sum:
        with self._lock:
            series = self._admitted(series, self._sums)
            return self._sums.setdefault(series, Sum(series))

    def _histogram_of(self, series: Series) -> Histogram:
        with self._lock:
            series = self._admitted(series, self._histograms)
            return self._histograms.setdefault(series, Histogram(series, deque(maxlen=self._samples_max)))

    def _admitted(self, series: Series, known: Iterable[Series]) -> Series:
        """Return the series, or where there are too many of its metric the one for all the others."""
        if series in known:
            return series
        if (
            self._numbers[series.name] >= SERIES_MAX
            or max(map(len, series.values), default=0) > VALUE_CHARS_MAX
        ):
            return Series(series.name, (OTHER,) * len(series.values))
        self._numbers[series.name] += 1
        return series


def _series(call: Call, kind: Kind | None = None) -> Series:
    """Return a call's series. Raises ValueError where the catalogue has no such metric, or other labels."""
    name, labels = call[0], dict(call[1])
    metric = BY_NAME.get(name)
    if metric is None or labels.keys() != set(metric.labels) or kind not in (None, metric.kind):
        raise ValueError(f"no {kind or 'metric'} {name} with the labels {sorted(labels)} is in the catalogue")
    return Series(name, tuple(labels[label] for label in metric.labels))
