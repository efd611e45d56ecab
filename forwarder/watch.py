"""What the worker knows of its own health: its beats, its progress, and the services it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from forwarder.brokers.background import in_background
from forwarder.brokers.keeper import ROUND_S_MAX, LeaseKeeper
from forwarder.brokers.leases import LeaseBook
from forwarder.inference import readiness
from forwarder.scaling.memory_guard import ROUND_S, MemoryGuard
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings
from forwarder.telemetry.gauges import Reading
from forwarder.telemetry.liveness import Beat, Liveness, Progress
from forwarder.telemetry.readiness import Readiness
from forwarder.telemetry.watchdog import Watchdog

#: Seconds between two turns of Celery's blocking loop, which waits so long for a message.
LOOP_EVERY_S = 2.0
HUB_EVERY_S = 1.0
#: Seconds after which such a loop has stopped: far beyond a fork of the pool, a call of the broker that
#: times out and a machine that is busy.
LOOP_STILL_S = 30.0
#: The same for a thread whose round may hold several such calls.
THREAD_STILL_S = 120.0
#: Seconds beyond the longest that a task may be held until /livez takes the worker for stuck.
STALL_SPARE_S = 60.0


def loop_beat() -> Beat:
    """Return the beat of the consumer's loop."""
    return Beat("loop", every_s=LOOP_EVERY_S, still_s=LOOP_STILL_S)


class Watch:
    """Beats of the worker's loops and threads, and what they and its services come to.

    ``loop`` is the consumer's beat. ``retries`` returns how often the consumer has tried
    in vain to connect, since it was connected last; ``waiting_age_s`` how old the look is that
    saw messages wait in the queues that are consumed, None where it saw none. Neither blocks.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        book: LeaseBook,
        keeper: LeaseKeeper,
        draining: Callable[[], bool],
        retries: Callable[[], int],
        waiting_age_s: Callable[[], float | None],
        loop: Beat,
    ) -> None:
        self._book = book
        self._keeper = keeper
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
        self.readiness = Readiness(
            inference=partial(readiness.probe, settings.health_url),
            broker=self._broker_up,
            draining=draining,
            unforked=book.unforked,
        )

    def __repr__(self) -> str:
        return f"<Watch live={not self.liveness.reasons()} ready={not self.readiness.reasons()}>"

    def start(self, guard: MemoryGuard) -> None:
        """Begin to watch; call it in the main thread, before the keeper and the guard start."""
        self._keeper.turned = self.leases
        guard.turned = self.memory
        if self._is_green:
            in_background(self._turn_hub)
        self.readiness.start()
        Watchdog(reasons=self.liveness.reasons).start()

    @property
    def starting(self) -> bool:
        """Return whether the consumer's loop has not turned yet."""
        return not self.loop.begun

    def readings(self) -> Iterator[Reading]:
        """Yield the gauges of the worker's health. Never blocks."""
        yield Reading("forwarder_live", float(not self.liveness.reasons()))
        yield Reading("forwarder_loop_lag_seconds", max(self.loop.late_s, self.hub.late_s, 0.0))
        yield Reading("forwarder_dependency_up", float(self._broker_up()), {"dependency": "broker"})
        yield Reading(
            "forwarder_dependency_up", float(self.readiness.inference_up), {"dependency": "inference"}
        )

    def _turn_hub(self) -> None:
        while True:
            self.hub()
            time.sleep(HUB_EVERY_S)

    def _broker_up(self) -> bool:
        """Return whether the consumer has its connection, renewals succeed and polls are answered."""
        # A drain ends gevent's loop, and leases are renewed all the same.
        connected = self.loop.turning or self._draining() or (self.starting and not self._retries())
        return connected and self._book.answered and not self._keeper.failing

    def _work_age_s(self) -> float | None:
        """Return how old the knowledge is of work that could end, with the services there that it needs."""
        if not self.loop.turning or not self._broker_up() or not self.readiness.inference_up:
            return None
        held, _ = self._book.glance()
        return 0.0 if any(not delivery.early for delivery in held) else self._waiting_age_s()
