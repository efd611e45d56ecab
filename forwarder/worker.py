"""The worker's life: check, wait for the inference server, consume, stop."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from forwarder import __version__, pool
from forwarder.endpoints import Endpoints, Running
from forwarder.inference import readiness
from forwarder.scaling.descriptors import raise_soft_limit
from forwarder.settings import Resolved
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password
from forwarder.stop_signals import STOP_SIGNALS, ignore_stop_signals
from forwarder.telemetry import logs
from forwarder.watch import Watch, loop_beat

if TYPE_CHECKING:
    from celery import Celery

    from forwarder.app import Composition
    from forwarder.brokers.keeper import LeaseKeeper
    from forwarder.draining_worker import DrainingWorker
    from forwarder.scaling.memory_guard import MemoryGuard
    from forwarder.tuning.at_work import AutoTuner

log = logging.getLogger(__name__)

#: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1

#: Pool to the class that Celery makes it of.
POOL_CLASSES = {"prefork": "forwarder.prefork_pool:PreforkPool", "gevent": "forwarder.green_pool:GreenPool"}


def run(resolved: Resolved) -> int:
    """Run the worker until it is told to stop; return the process's exit code.

    Blocks for the life of the worker. SIGTERM ends it with 0 once the tasks in
    flight are done or handed back, or at once before it consumes. Raises PoolError
    when the patch does not fit the pool, SettingsError when the HTTP port can't be had.
    """
    settings = resolved.settings
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)  # until the drain installs its own
    pool.verify(settings.pool)
    logs.configure(settings.log_level, settings.log_format)
    raise_soft_limit()  # the children have it from here
    log.info(
        "worker_start version=%s pool=%s concurrency=%d queues=%s broker=%s",
        __version__, settings.pool, settings.concurrency, ",".join(settings.queues), settings.broker_kind,
    )  # fmt: skip
    endpoints = Endpoints(resolved=resolved)
    server = endpoints.serve()
    readiness.wait_until_ready(
        partial(readiness.probe, settings.health_url), url=without_password(settings.health_url)
    )
    exit_code = _consume(settings, endpoints)
    ignore_stop_signals()
    if server is not None:
        server.stop()
    if "ddtrace" in sys.modules:
        # Python's end would wait for its threads, and they for an agent that is silent: dd-trace-py#13004.
        os._exit(exit_code)
    return exit_code


def _stop(signum: int, frame: FrameType | None) -> None:
    """End a process that has nothing in flight yet, as a success.

    A container's first process has no default action for SIGTERM: without a
    handler it would start to consume after it was told to stop. Nothing is open
    that an ordinary exit would close, and a SystemExit that is raised in the
    middle of an import can be swallowed there.
    """
    log.info("worker_stopped before consuming")
    os._exit(0)


def _consume(settings: Settings, endpoints: Endpoints) -> int:
    # Here and not above: importing Celery and the brokers takes longer than all
    # the rest, and a worker that waits for its model need not hold it in memory.
    from celery import signals

    from forwarder.app import Composition
    from forwarder.brokers.keeper import LeaseKeeper, round_s
    from forwarder.drain import Drain
    from forwarder.draining_worker import DrainingWorker
    from forwarder.scaling.allocator import give_large_blocks_back

    give_large_blocks_back()
    composition = Composition(settings)
    app = composition.celery_app()
    app.conf.forwarder_slots_are_here = settings.pool == "gevent"
    app.conf.forwarder_loop_beat = loop_beat()
    drain = Drain(book=composition.book, timeout_s=settings.drain_timeout_s, close=composition.leave)
    # Celery then leaves the log to logs.configure.
    signals.setup_logging.connect(_keep_logging, weak=False)
    signals.worker_process_init.connect(_die_with_the_worker, weak=False)
    signals.worker_process_shutdown.connect(lambda **_: composition.close(), weak=False)
    worker = DrainingWorker(
        app=app,
        drain=drain,
        hostname=f"forwarder-{os.getpid()}@{socket.gethostname()}",
        pool=POOL_CLASSES[settings.pool],
        concurrency=settings.concurrency,
        **(
            _prefork_options(settings, app, composition)
            if settings.pool == "prefork"
            else _green_options(settings)
        ),
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        loglevel=settings.log_level,
    )
    keeper = LeaseKeeper(
        book=composition.book, interval_s=round_s(settings.visibility_timeout_s), cancel=worker.abandon
    )
    if settings.pool == "prefork":  # the only one that forks
        composition.book.unforked.guard()
    guard = composition.memory_guard()
    _observe(settings, composition, endpoints, worker=worker, keeper=keeper, guard=guard)
    tuner = _auto(settings, composition, worker) if settings.auto else None
    keeper.start()
    guard.start()
    if tuner is not None:
        tuner.start()
    try:
        worker.start()
    finally:
        if tuner is not None:
            tuner.stop()
        guard.stop()
        keeper.stop()
        drain.end(worker)
    log.info("worker_stopped exit_code=%d", drain.exit_code)
    return drain.exit_code


def _observe(
    settings: Settings,
    composition: Composition,
    endpoints: Endpoints,
    *,
    worker: DrainingWorker,
    keeper: LeaseKeeper,
    guard: MemoryGuard,
) -> None:
    """Begin to measure and to watch, where there is somebody to tell."""
    from forwarder.forwarding.task import TASK_NAMES

    telemetry = composition.telemetry(slots=lambda: getattr(worker.pool, "num_processes", 0))
    if telemetry is None:
        return
    watch = Watch(
        settings=settings,
        book=composition.book,
        keeper=keeper,
        results=worker.app.conf.forwarder_store.look,
        loop=worker.app.conf.forwarder_loop_beat,
        draining=lambda: worker.drain.begun,
        retries=lambda: worker.consumer.broker_connection_retry_attempt,
        waiting_age_s=lambda: telemetry.waiting_age_s(worker.consumed),
    )
    composition.gauges.add(watch.readings)
    telemetry.start()
    watch.start(guard)
    endpoints.running = Running(
        hostname=worker.hostname,
        task_names=TASK_NAMES,
        watch=watch,
        book=composition.book,
        admission=composition.admission,
        numbers=telemetry,
    )


def _auto(settings: Settings, composition: Composition, worker: Any) -> AutoTuner:
    """Return what measures the worker's own tasks and bounds its autoscaler by them, not yet started."""
    from forwarder.tuning.at_work import auto_tuner

    return auto_tuner(
        settings,
        limit=composition.limit,
        book=composition.book,
        scaler=worker.autoscaler,
        metrics=composition.metrics.get(),
        response_bytes=lambda: composition.admission.response_bytes_peak,
    )


def _prefork_options(settings: Settings, app: Celery, composition: Composition) -> dict[str, Any]:
    """Return Celery's options for children that are replaced and for a pool that grows and shrinks."""
    from forwarder.scaling.prefork_options import prefork_options, scaling

    app.conf.forwarder_scaling = scaling(settings, composition.limit, composition.metrics.get())
    return prefork_options(settings, composition.limit)


def _green_options(settings: Settings) -> dict[str, Any]:
    """Return Celery's options for slots that open and close."""
    from forwarder.scaling.green_autoscaler import GreenAutoscaler

    if settings.autoscale is None:
        return {}
    return {"autoscale": settings.autoscale, "autoscaler_cls": GreenAutoscaler}


def _die_with_the_worker(**_: object) -> None:
    """Let the kernel kill this child when the worker dies: its call would go on beside the next one's.

    Celery asks for it as well, but children were seen on which it had no effect.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_logging(**_: object) -> None:
    """Receive ``setup_logging``; that somebody listens is all that Celery asks."""
