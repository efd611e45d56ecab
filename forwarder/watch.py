"""What the worker knows of its own health: its beats, its progress, and the services it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from forwarder.aws_errors import describe
from forwarder.brokers.background import in_background
from forwarder.brokers.keeper import ROUND_S_MAX, LeaseKeeper
from forwarder.brokers.leases import LeaseBook
from forwarder.inference import readiness
from forwarder.scaling.memory_guard import ROUND_S, MemoryGuard
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password
from forwarder.telemetry.gauges import Reading
from forwarder.telemetry.liveness import Beat, Liveness, Progress
from forwarder.telemetry.readiness import ROUND_S as LOOK_S
from forwarder.telemetry.readiness import Look, Readiness
from forwarder.telemetry.watchdog import Watchdog

#: Seconds between two turns of Celery's blocking loop, which waits so long for a message.
LOOP_EVERY_S = 2.0
HUB_EVERY_S = 1.0
#: Seconds after which such a loop has stopped: far beyond a fork of the pool, a call of the broker that
#: times out and a machine that is busy.
LOOP_STILL_S = 30.0
#: The same for a thread whose round may hold several such calls.
THREAD_STILL_S = 120.0
#: Seconds between two looks at results in S3 while they can be reached: each is a request that is billed.
S3_LOOK_S = 60.0
#: Seconds beyond the longest that a task may be held until /livez takes the worker for stuck.
STALL_SPARE_S = 60.0


def loop_beat() -> Beat:
    """Return the beat of the consumer's loop."""
    return Beat("loop", every_s=LOOP_EVERY_S, still_s=LOOP_STILL_S)


class Watch:
    """Beats of the worker's loops and threads, and what they and its services come to.

    ``loop`` is the consumer's beat. ``results`` asks the result store, blocks for some seconds at
    most and raises what its client raises. ``retries`` returns how often the consumer has tried
    in vain to connect, since it was connected last; ``waiting_age_s`` how old the look is that
    saw messages wait in the queues that are consumed, None where it saw none. These two never block.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        book: LeaseBook,
        keeper: LeaseKeeper,
        results: Callable[[], object],
        draining: Callable[[], bool],
        retries: Callable[[], int],
        waiting_age_s: Callable[[], float | None],
        loop: Beat,
    ) -> None:
        self._book = book
        self._keeper = keeper
        self._ask_results = results
        self._store = without_password(settings.result_backend)
        self._retries = retries
        self._draining = draining
        self._waiting_age_s = waiting_age_s
        self._is_green = settings.pool == "gevent"
        self.loop = loop
        self.hub = Beat("hub", every_s=HUB_EVERY_S, still_s=LOOP_STILL_S)
        self.leases = Beat("leases", every_s=ROUND_S_MAX, still_s=THREAD_STILL_S)
        self.memory = Beat("memory", every_s=ROUND_S, still_s=THREAD_STILL_S)
        self.liveness = Liveness(
            beats=(self.loop, self.hub, self.leases, self.memory),
            progress=Progress(
                ended=lambda: book.ended,
                work_age_s=self._work_age_s,
                stall_s=settings.live_stall_s or held_s(settings) + STALL_SPARE_S,
            ),
            draining=draining,
        )
        self.inference = Look(
            name="inference", ask=partial(readiness.probe, settings.health_url), unforked=book.unforked
        )
        self.results = Look(
            name="result_store",
            ask=self._results_away,
            unforked=book.unforked,
            round_s=S3_LOOK_S if settings.result_backend.startswith("s3://") else LOOK_S,
        )
        self.readiness = Readiness(
            inference=self.inference, results=self.results, broker=self._broker_up, draining=draining
        )

    def __repr__(self) -> str:
        return f"<Watch live={not self.liveness.reasons()} ready={not self.readiness.reasons()}>"

    def start(self, guard: MemoryGuard) -> None:
        """Begin to watch; call it in the main thread, before the keeper and the guard start."""
        self._keeper.turned = self.leases
        guard.turned = self.memory
        if self._is_green:
            in_background(self._turn_hub)
        self.inference.start()
        self.results.start()
        Watchdog(reasons=self.liveness.reasons).start()

    @property
    def starting(self) -> bool:
        """Return whether the consumer's loop has not turned yet."""
        return not self.loop.begun

    def readings(self) -> Iterator[Reading]:
        """Yield the gauges of the worker's health. Never blocks."""
        yield Reading("forwarder_live", float(not self.liveness.reasons()))
        yield Reading("forwarder_loop_lag_seconds", max(self.loop.late_s, self.hub.late_s, 0.0))
        for name, up in (
            ("broker", self._broker_up()),
            ("inference", self.inference.up),
            ("results", self.results.up),
        ):
            yield Reading("forwarder_dependency_up", float(up), {"dependency": name})

    def _turn_hub(self) -> None:
        while True:
            self.hub()
            time.sleep(HUB_EVERY_S)

    def _broker_up(self) -> bool:
        """Return whether the consumer has its connection, its looks are served and renewals succeed."""
        # A drain ends gevent's loop, and leases are renewed all the same.
        connected = self.loop.turning or self._draining() or (self.starting and not self._retries())
        return connected and self._book.answered and not self._keeper.failing

    def _results_away(self) -> str | None:
        """Return which store can't be used and why, None where it can. Blocks."""
        try:
            self._ask_results()
        except Exception as error:  # noqa: BLE001 - a store is away in more ways than its client names
            return f"{self._store}: {describe(error)}"
        return None

    def _work_age_s(self) -> float | None:
        """Return how old the knowledge is of work that could end, with the services there that it needs."""
        if not self.loop.turning or not self._broker_up() or not self.inference.up or not self.results.up:
            return None
        held, _ = self._book.glance()
        return 0.0 if any(not delivery.early for delivery in held) else self._waiting_age_s()
