"""Faults of workers: killed, told to stop, starved, and with a wrong clock."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator

import psutil

from forwarder.settings.coherence import ENDING_S
from forwarder.testing.processes import StartFailed, family
from forwarder.testing.worker import Worker
from tests.faults.scenario import Act, Nemesis
from tests.faults.workers import clock_env

STOP_S = 3.0 + ENDING_S  # the drain, and what a worker promises to need after it
OUTLASTING = {"sleep_s": STOP_S + 5.0}
HOUR_S = 3600


def worker_killed(act: Act) -> None:
    """Kill -9 a worker with all its children; a new one takes its place."""
    act.pause(1.0)
    act.crew.workers[0].kill()
    act.crew.hire()


def peer_killed(act: Act) -> None:
    """Kill -9 one of two workers while it holds tasks; the other has nothing to do by then."""
    first = act.crew.workers[0]
    act.wait_for(lambda: act.model.stats()["in_flight"] >= 2, 10.0)
    act.pause(0.3)
    first.kill()


def main_process_killed(act: Act) -> None:
    """Kill -9 the main process alone: what it leaves must not go on beside the worker that follows."""
    act.pause(1.0)
    os.kill(act.crew.workers[0].pid, signal.SIGKILL)
    act.crew.hire()


def child_killed(act: Act) -> None:
    """Kill -9 prefork children in the middle of a task, one after the other."""
    known: set[float] = set()
    for _ in range(4):
        act.pause(0.5)
        act.wait_for(lambda: _killed_askers(act, known) > 0, 5.0)


def told_to_stop(act: Act) -> None:
    """SIGTERM; the worker that takes its place is there already."""
    _stopped(act, signal.SIGTERM)


def told_to_stop_twice(act: Act) -> None:
    """SIGTERM and, while it drains, another."""
    _stopped(act, signal.SIGTERM, signal.SIGTERM)


def told_in_long_tasks(number: signal.Signals) -> Nemesis:
    """Send a signal while every slot has a task that outlasts the stop; the next worker comes after it."""

    def nemesis(act: Act) -> None:
        act.behave(**OUTLASTING)
        for _ in range(4):
            act.sender.send()
        act.wait_for(lambda: act.model.stats()["in_flight"] >= 4, 10.0)
        act.pause(0.3)
        leaving = act.crew.workers[0]
        os.kill(leaving.pid, number)
        _see_it_end(act, leaving)
        act.behave()
        act.crew.hire()

    return nemesis


def _stopped(act: Act, *signals: signal.Signals) -> None:
    act.pause(1.0)
    act.crew.hire()
    leaving = act.crew.workers[0]
    for number in signals:
        if leaving.alive:
            os.kill(leaving.pid, number)
        act.pause(0.4)
    _see_it_end(act, leaving)


def _see_it_end(act: Act, leaving: Worker) -> None:
    """Block until a worker has ended; kill it, as Kubernetes would, when it takes too long."""
    try:
        code = leaving.wait_exit(STOP_S)
    except StartFailed:
        act.complaints.append(f"the worker ran on for {STOP_S:g} s after the signal")
        leaving.kill()
    else:
        if code != 0:
            act.complaints.append(f"the worker ended with exit code {code}")


def poison(act: Act) -> None:
    """Kill -9 whoever works on one task, each time, and replace the worker where that ended it."""
    poisoned = act.sender.send({"sleep_s": 60.0}, expect="failed_and_dead")
    known: set[float] = set()
    for _ in range(8):
        if not act.wait_for(lambda: _killed_askers(act, known, poisoned) > 0, 10.0):
            return
        act.pause(0.5)
        if not act.crew.alive():
            act.crew.hire()


def _killed_askers(act: Act, known: set[float], task_id: str | None = None) -> int:
    """Kill the process behind each new request, or behind the latest one for any task; return how many."""
    asked = [event for event in act.ledger.events() if event.what == "asked" and event.at not in known]
    asked = asked[-1:] if task_id is None else [event for event in asked if event.id == task_id]
    number = 0
    for event in asked:
        known.add(event.at)
        owner = act.crew.owner(int(event.detail))
        if owner is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                owner.kill()
                number += 1
    return number


def descriptors_exhausted(act: Act) -> None:
    """Let the worker open nothing more for a while."""
    act.pause(1.0)
    with contextlib.ExitStack() as stack:
        for process in family(act.crew.workers[0].pid):
            stack.enter_context(_no_more_descriptors(process))
        act.pause(2.0, 10.0)


@contextlib.contextmanager
def _no_more_descriptors(process: psutil.Process) -> Iterator[None]:
    soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), hard))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_NOFILE, (soft, hard))


def clock_ahead(act: Act) -> None:
    """Let a second worker join whose wall clock is an hour ahead."""
    act.pause(0.5)
    act.crew.hire(env=clock_env(HOUR_S))
    act.pause(2.0, 10.0)


def clock_behind(act: Act) -> None:
    """Let a second worker join whose wall clock is an hour behind."""
    act.pause(0.5)
    act.crew.hire(env=clock_env(-HOUR_S))
    act.pause(2.0, 10.0)


def nothing(act: Act) -> None:
    """Wait: the load is the fault."""
    act.pause(1.0)
