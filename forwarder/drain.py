"""How the worker ends: finish what is in flight, hand back the rest, and be gone in bounded time."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from celery import signals
from celery.platforms import EX_OK
from celery.worker import state

from forwarder.brokers.background import done_within
from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.stop_signals import STOP_SIGNALS

log = logging.getLogger(__name__)

#: Seconds between two looks at whether a second signal came.
LOOK_S = 0.2

# How the worker ends, in seconds after the drain. Each step is over by its moment, done or not, and
# the next one begins: what hangs (a broker that is silent, and nobody has noticed) goes on beside it
# for as long as the process lives. What was not handed back by then comes again by itself.

#: The consumer is closed, which would take the messages that are handed back again. Celery's blocking
#: loop looks about every two seconds whether it is to stop.
CLOSED_BY_S = 3.0
#: The broker has its messages back.
HANDED_BACK_BY_S = 5.0
#: The main thread has come out by itself; it has this long once nothing is in flight, too.
OUT_BY_S = 6.0
COMING_OUT_S = 3.0
#: The broker has what came last.
ALL_BACK_BY_S = 7.0
#: Hooks and leases are flushed, and the process leaves.
LEFT_BY_S = 8.0
#: A process that hangs, so that it runs no Python code, is ended; within the settings' ENDING_S, by
#: which Kubernetes' grace period must pass the drain.
WATCHDOG_S = 9.0

#: The file descriptor of the standard error stream, whatever ``sys.stderr`` is by then.
STDERR = 2


class StoppingWorker(Protocol):
    """What the drain needs of the worker."""

    hostname: str

    def abandon(self, delivery: Delivery) -> None:
        """Kill the running copy of a task; settles nothing, never raises."""


def watch(seconds: float) -> None:
    """End the process with 1 after so long, and print where it hangs; a later call moves the time.

    In a C thread, which needs no interpreter lock: see dd-trace-py#13004.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)


class Drain:
    """Ends the process after the first SIGTERM, SIGINT, SIGHUP or SIGQUIT, with the exit code 0.

    The first of them stops the consuming and waits up to ``timeout_s`` seconds for
    what is in flight; a second one, or SIGQUIT, does not wait. What still runs then
    is killed and handed back to its queue, uncounted. ``close`` flushes hooks and
    leases; it is called once.

    All of this happens in a thread (under gevent's patch a greenlet), because
    Celery's main thread waits for its pool without a bound; if it does not come
    out of that by itself, the process ends without it.
    """

    def __init__(
        self,
        *,
        book: LeaseBook,
        timeout_s: float,
        close: Callable[[], None],
        watch: Callable[[float], None] = watch,
        leave: Callable[[int], object] = os._exit,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        done_within: Callable[[Callable[[], None], float], bool] = done_within,
    ) -> None:
        self.exit_code: int = EX_OK
        self._book = book
        self._timeout_s = timeout_s
        self._close = close
        self._watch = watch
        self._leave = leave
        self._monotonic = monotonic
        self._sleep = sleep
        self._done_within = done_within
        self._pid = os.getpid()
        self._bell, self._push = socket.socketpair()
        self._begun = False
        self._deadline_s = 0.0
        self._at_once = False
        self._consuming = True
        self._ending = threading.Lock()
        self._ended = False
        self._main_is_out = False
        self._drained_s: float | None = None

    def __repr__(self) -> str:
        return f"<Drain begun={self._begun} at_once={self._at_once} timeout_s={self._timeout_s:g}>"

    @property
    def begun(self) -> bool:
        """Return whether the worker was told to stop."""
        return self._begun

    def install(self, worker: StoppingWorker) -> None:
        """Take the signals over; call it in the main thread."""
        threading.Thread(target=self.run, args=(worker,), name="drain", daemon=True).start()
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def begin(self, *, exit_code: int = EX_OK, at_once: bool = False) -> None:
        """Stop the worker; later calls only make it quicker. Never blocks: signal handlers may call it."""
        self._at_once = self._at_once or at_once
        if not self._begun or at_once:
            self._watch(WATCHDOG_S + (0.0 if self._at_once else self._timeout_s))
        if not self._begun:
            self._begun = True
            self._deadline_s = self._monotonic() + self._timeout_s
            self.exit_code = exit_code
            state.should_stop = EX_OK  # type: ignore[assignment]  # the stubs know only None
            os.write(self._push.fileno(), b"!")

    def consumer_stopped(self) -> None:
        """Note that no more messages come."""
        self._consuming = False

    def end(self, worker: StoppingWorker) -> None:
        """Hand back what is left, then flush hooks and leases. For the main thread, on its way out.

        Blocks until ``LEFT_BY_S`` at the latest. Does not return where the drain is already ending
        the process: two threads at that would both run what is registered with ``atexit``.
        """
        with self._ending:
            self._settle_all(worker)
            self._main_is_out = True

    def _settle_all(self, worker: StoppingWorker) -> None:
        """Hand back and flush, once."""
        if not self._ended:
            self._ended = True
            self._wait_for_last()
            self._hand_back(worker, by_s=ALL_BACK_BY_S)
            self._bounded("flush", self._close, by_s=LEFT_BY_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A child of the pool inherits this, and gets what is sent to the process group.
        if os.getpid() == self._pid:
            self.begin(at_once=self._begun or number == signal.SIGQUIT)

    def run(self, worker: StoppingWorker) -> None:
        """Wait for the first signal, then see the worker to its end."""
        self._bell.recv(1)
        log.info("drain_start in_flight=%d timeout_s=%g", len(self._book), self._timeout_s)
        signals.worker_shutting_down.send(
            sender=worker.hostname, sig="SIGTERM", how="Warm", exitcode=self.exit_code
        )
        self._wait_for_tasks()
        self._abandon(worker)
        self._wait_for_consumer()
        self._hand_back(worker, by_s=HANDED_BACK_BY_S)
        self._sleep(min(COMING_OUT_S, self._left_s(OUT_BY_S)))
        with self._ending:
            self._settle_all(worker)
            if not self._main_is_out:
                log.info("worker_stopped exit_code=%d main_thread=busy", self.exit_code)
                self._leave(self.exit_code)  # inside, so that the main thread stays in ``end``
                return
        self._sleep(min(COMING_OUT_S, self._left_s(LEFT_BY_S)))  # Python's own end is under way, and may hang
        self._leave(self.exit_code)

    def _wait_for_tasks(self) -> None:
        """Return when nothing is in flight and nothing can come, or when the time is over."""
        while (left_s := self._drain_left_s()) > 0:
            if not self._book.wait_empty(min(left_s, LOOK_S)):
                continue
            if not self._consuming:
                break
            self._sleep(min(left_s, LOOK_S))
        self._wait_for_last()

    def _wait_for_last(self) -> None:
        """Wait, within the drain, for what was asked for before the stop: it is handed back as it comes."""
        while self._book.expecting() and (left_s := self._drain_left_s()) > 0:
            self._sleep(min(left_s, LOOK_S))

    def _drain_left_s(self) -> float:
        return 0.0 if self._at_once else max(0.0, self._deadline_s - self._monotonic())

    def _wait_for_consumer(self) -> None:
        while self._consuming and self._left_s(CLOSED_BY_S):
            self._sleep(LOOK_S)

    def _left_s(self, by_s: float) -> float:
        """Return the seconds until a moment after the drain, which is over with the first call."""
        now_s = self._monotonic()
        if self._drained_s is None:
            self._drained_s = now_s
        return max(0.0, self._drained_s + by_s - now_s)

    def _abandon(self, worker: StoppingWorker) -> list[Delivery]:
        """Kill what runs; return what is to be handed back."""
        deliveries = self._book.held()
        for delivery in deliveries:
            worker.abandon(delivery)
        return deliveries

    def _hand_back(self, worker: StoppingWorker, *, by_s: float) -> None:
        """Kill what runs and give its messages back; they don't count as delivered."""

        def give_back() -> None:
            self._book.hand_back(self._abandon(worker))
            self._book.settle_owed()

        self._bounded("hand_back", give_back, by_s=by_s)

    def _bounded(self, step: str, work: Callable[[], None], *, by_s: float) -> None:
        """Do one step of the end; return when it is over, or without it when its time is."""

        def unforked() -> None:
            with self._book.unforked:
                work()

        if not self._done_within(unforked, self._left_s(by_s)):
            log.warning("stopping_goes_on_without step=%s", step)
