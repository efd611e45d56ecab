"""What exporters need of the worker's main process, put together: sources of gauges, threads, the page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import TypeGuard

from celery.worker import state

from forwarder import __version__
from forwarder.brokers.deliveries import Waiting
from forwarder.brokers.leases import LeaseBook
from forwarder.forwarding import errors
from forwarder.forwarding.payload import parse_arrival
from forwarder.settings.model import Settings
from forwarder.telemetry.backlog import ROUND_S, SQS_ROUND_S, Backlog, QueueBacklog
from forwarder.telemetry.children import ChildPipe
from forwarder.telemetry.dogstatsd import DogStatsdFeed, make_client
from forwarder.telemetry.gauges import Gauges, Reading, resident_bytes
from forwarder.telemetry.metrics import ProcessMetrics, Series
from forwarder.telemetry.prometheus import Exposition

log = logging.getLogger(__name__)


class Telemetry:
    """Everything that tells the world outside about the worker's numbers; made in the main process.

    ``slots`` returns how many tasks may run now, ``memory`` the bytes in use, if known, and the limit;
    ``pipe`` brings what the children of a prefork pool count, None without any.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        book: LeaseBook,
        metrics: ProcessMetrics,
        gauges: Gauges,
        slots: Callable[[], int],
        memory: Callable[[], tuple[int | None, int]],
        pipe: ChildPipe | None,
        dogstatsd: bool,
    ) -> None:
        self._settings = settings
        self._book = book
        self._metrics = metrics
        self._gauges = gauges
        self._slots = slots
        self._memory = memory
        self._pipe = pipe
        self._backlog = Backlog(
            look=self._look,
            round_s=SQS_ROUND_S if settings.broker_kind == "sqs" else ROUND_S,
            unforked=book.unforked,
        )
        client = make_client() if dogstatsd else None
        self._feed = client and DogStatsdFeed(client=client, metrics=metrics, gauges=gauges)
        self._page = Exposition(metrics=metrics, gauges=gauges) if settings.http_port else None
        self._resident_bytes = resident_bytes()
        for source in (self._of_the_worker, self._of_hooks, self._backlog.readings):
            gauges.add(source)
        self._begin_at_zero()

    def render(self) -> tuple[bytes, str]:
        """Return the page for Prometheus and its content type. Never blocks; for one thread, any."""
        if self._page is None:
            raise RuntimeError("there is no HTTP port to serve the page on")
        return self._page.render()

    def refresh(self) -> None:
        """Look at this process's memory, processor time and files; to be called about once a second."""
        self._resident_bytes = resident_bytes()
        if self._page is not None:
            self._page.refresh()

    def values(self) -> list[tuple[Series, float]]:
        """Return every counter and gauge as it is now. Never blocks."""
        counters = [(cell.series, float(cell.value)) for cell in self._metrics.sums("counter")]
        return counters + self._gauges.read()

    def waiting_age_s(self, queues: Collection[str]) -> float | None:
        """Return how old the last look is, where it saw messages wait in one of these. Never blocks."""
        return self._backlog.waiting_age_s(queues)

    def start(self) -> None:
        """Begin to listen to the children, look at the queues and feed the agent; before the first fork."""
        if self._pipe is not None:
            self._pipe.start()
        self._backlog.start()
        if self._feed is not None:
            self._feed.start()

    def stop(self) -> None:
        """Take in and send on what came last, once no task runs any more. Blocks for 4 s at most."""
        self._backlog.stop()
        if self._pipe is not None:
            self._pipe.stop()
        if self._feed is not None:
            self._feed.stop()

    def _of_the_worker(self) -> Iterator[Reading]:
        settings = self._settings
        slots, busy = self._slots(), len(state.active_requests)
        yield Reading("forwarder_inflight", len(self._book))
        yield Reading("forwarder_concurrency_limit", slots)
        yield Reading("forwarder_pool_size", busy, {"state": "busy"})
        yield Reading("forwarder_pool_size", max(0, slots - busy), {"state": "idle"})
        used, limit = self._memory()
        for kind, number in (("used", used), ("limit", limit), ("rss", self._resident_bytes)):
            if number is not None:
                yield Reading("forwarder_memory_bytes", number, {"kind": kind})
        about = {"version": __version__, "pool": settings.pool, "broker": settings.broker_kind}
        yield Reading("forwarder_info", 1, about)

    def _of_hooks(self) -> Iterator[Reading]:
        levels = {cell.series: cell.value for cell in self._metrics.sums("gauge")}
        for hook in self._settings.hooks:
            yield Reading("forwarder_hook_backlog", 0, {"hook": hook})
        for series, value in (*levels.items(), *(self._pipe.levels() if self._pipe else {}).items()):
            yield Reading(series.name, value, series.labels)

    def _look(self) -> list[QueueBacklog]:
        return [_backlog_of(waiting, now=datetime.now(UTC)) for waiting in self._book.leases.backlog()]

    def _begin_at_zero(self) -> None:
        """Let a series be there before its first event: from nothing to 1 is no increase to Prometheus."""
        for queue in self._settings.queues:
            for kind in ("first", "redelivered", "dead"):
                self._metrics.count("forwarder_deliveries_total", 0, queue=queue, kind=kind)
            for outcome in ("success", "requeued", "revoked", *codes()):
                self._metrics.count("forwarder_tasks_total", 0, queue=queue, outcome=outcome)
        for hook in self._settings.hooks:
            for outcome in ("ok", "skipped", "failed"):
                self._metrics.count("forwarder_hook_total", 0, hook=hook, outcome=outcome)


def codes() -> list[str]:
    """Return every code with which a task may fail."""
    return sorted({kind.code for kind in vars(errors).values() if _is_failure(kind)})


def _is_failure(kind: object) -> TypeGuard[type[errors.ForwarderError]]:
    return isinstance(kind, type) and issubclass(kind, errors.ForwarderError)


def _backlog_of(waiting: Waiting, *, now: datetime) -> QueueBacklog:
    """Return what is told of a queue: an empty one has no old message, of others their arrival times tell."""
    if waiting.arrivals is None:
        return QueueBacklog(waiting.queue, waiting.number, None)
    moments = [moment for each in waiting.arrivals if (moment := parse_arrival(each, now=now)) is not None]
    oldest_s = (now - min(moments)).total_seconds() if moments else None
    return QueueBacklog(waiting.queue, waiting.number, oldest_s if waiting.number else 0.0)
