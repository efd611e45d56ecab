"""The numbers as Datadog gets them: sent by a thread of its own every ten seconds, over Datadog's client."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from forwarder.telemetry.gauges import Gauges
from forwarder.telemetry.metrics import Histogram, ProcessMetrics, Series
from forwarder.telemetry.native import start_native, unpatched

log = logging.getLogger(__name__)

#: Seconds between two flushes: the agent sums up what it got in as many before it passes it on.
#: https://docs.datadoghq.com/developers/dogstatsd/data_aggregation/
INTERVAL_S = 10.0
#: Measurements of one histogram that one flush sends; of more it sends the newest, with the rate of it.
SAMPLES_MAX = 1000
#: Seconds that one packet waits for an agent that is slow to read.
SEND_S = 0.2
#: Seconds that the end of the worker waits for the last flush.
LAST_FLUSH_S = 2.0


def make_client() -> Any | None:
    """Return Datadog's client, which reads its ``DD_`` variables; None, and one line, without its package.

    It sends when it is told to and at no other time: no thread, nothing about itself, and no part
    in forks, which only the process that made it outlives.
    """
    try:
        from datadog.dogstatsd.base import DogStatsd
    except ImportError:
        log.warning("dogstatsd_off reason=package_missing: pip install 'forwarder[datadog]'")
        return None
    # A line for each packet that nobody takes; here it is one for all of them.
    logging.getLogger("datadog.dogstatsd").setLevel(logging.CRITICAL)
    return DogStatsd(
        disable_buffering=False,
        flush_interval=0,  # no thread of its own
        disable_telemetry=True,
        track_instance=False,
        socket_timeout=SEND_S,
    )


class DogStatsdFeed:
    """Sends what was counted since the last flush, what was measured since then, and the gauges.

    Measurements go as distributions, which Datadog adds up over all workers before it makes
    percentiles of them. A task never waits for any of this: the thread is the system's own, also
    under gevent, and what can't be sent is lost. Make ``metrics`` with ``SAMPLES_MAX``.
    """

    def __init__(
        self,
        *,
        client: Any,
        metrics: ProcessMetrics,
        gauges: Gauges,
        interval_s: float = INTERVAL_S,
        start_native: Callable[[Callable[[], None]], None] = start_native,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._gauges = gauges
        self._interval_s = interval_s
        self._start_native = start_native
        self._sleep = sleep
        self._monotonic = monotonic
        self._counted: dict[Series, int] = {}
        self._measured: dict[Series, int] = {}
        self._failing: str | None = None
        # Held while the thread is to go on, and while it runs. The system's own: waited for beside the hub.
        self._going_on, self._running = (unpatched("_thread", "allocate_lock")() for _ in range(2))
        self._going_on.acquire()

    def __repr__(self) -> str:
        return f"<DogStatsdFeed interval_s={self._interval_s:g} failing={self._failing}>"

    def start(self) -> None:
        """Flush every ``interval_s`` until ``stop``."""
        self._running.acquire()
        self._start_native(self._run)

    def stop(self) -> None:
        """Flush once more. Blocks for ``LAST_FLUSH_S`` at most."""
        if self._running.locked():
            self._going_on.release()
        until_s = self._monotonic() + LAST_FLUSH_S
        while self._running.locked() and self._monotonic() < until_s:
            self._sleep(0.02)

    def flush(self) -> None:
        """Send. Blocks for a fraction of a second where the agent is slow; never raises."""
        try:
            self._report()
            failing = None if self._client.flush() else "not_sent"
        except Exception as error:  # noqa: BLE001 - whatever it was, the next flush may do
            failing = type(error).__name__
        if failing and not self._failing:
            log.warning("dogstatsd_failing error=%s", failing)
        elif self._failing and not failing:
            log.info("dogstatsd_recovered")
        self._failing = failing

    def _run(self) -> None:
        while not self._going_on.acquire(timeout=self._interval_s):
            self.flush()
        self.flush()
        self._running.release()

    def _report(self) -> None:
        for cell in self._metrics.sums("counter"):
            value = cell.value
            if new := value - self._counted.get(cell.series, 0):
                self._client.increment(cell.series.metric.statsd_name, new, tags=_tags(cell.series))
            self._counted[cell.series] = value
        for histogram in self._metrics.histograms():
            self._report_measured(histogram)
        for series, reading in self._gauges.read():
            self._client.gauge(series.metric.statsd_name, reading, tags=_tags(series))

    def _report_measured(self, histogram: Histogram) -> None:
        series, number = histogram.series, sum(histogram.buckets)
        new = number - self._measured.get(series, 0)
        self._measured[series] = number
        samples = [histogram.samples.popleft() for _ in range(len(histogram.samples))]
        rate = min(1.0, len(samples) / max(new, 1))
        for sample in samples:
            # Not ``distribution``: that would leave out a part of these by the rate once more. Private,
            # and what the client's own buffer of samples uses; a test pins it.
            self._client._report(series.metric.statsd_name, "d", sample, _tags(series), rate, sampling=False)


def _tags(series: Series) -> list[str]:
    return [f"{label}:{value}" for label, value in series.labels.items()]
