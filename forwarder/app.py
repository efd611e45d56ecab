"""Composition root: settings to parts to the Celery app; the only place that knows them all."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.worker import state
from kombu import Connection

from forwarder.brokers import compression
from forwarder.brokers.config import (
    SPARE_CONNECTIONS,
    SQS_ANSWER_S,
    broker_config,
    consuming_config,
    sqs_wait_s,
)
from forwarder.brokers.deliveries import Delivery, Leases
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.pardons import Pardons
from forwarder.cloud.per_process import PerProcess
from forwarder.cloud.session import AwsSession, s3_client
from forwarder.forwarding.task import TASK_NAMES, ForwardTask
from forwarder.process_parts import PartsBuilder
from forwarder.results.patience import Patience
from forwarder.scaling.admission import Admission, default_bytes_max
from forwarder.scaling.container import container_limit_bytes
from forwarder.scaling.memory_guard import MemoryGuard, children
from forwarder.scaling.process_memory import Memory
from forwarder.scaling.turns import SharedLock, Turns, siblings
from forwarder.settings.datadog import dogstatsd_is_on
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password
from forwarder.telemetry import children as child_counts
from forwarder.telemetry import dogstatsd, tracing
from forwarder.telemetry.children import ChildPipe
from forwarder.telemetry.gauges import Gauges
from forwarder.telemetry.metrics import ProcessMetrics
from forwarder.telemetry_parts import Telemetry

#: Seconds until one call of the lease keeper's Redis client has failed: renewals must
#: not wait for a broker that is frozen.
LEASE_CONNECT_TIMEOUT_S = 3.0
LEASE_TIMEOUT_S = 5.0

#: Seconds until one SQS call that is no poll has failed: so short that a renewal which hangs ends
#: before the lease does. Tried again by who needs it, so each call is one attempt.
SQS_TIMEOUT_S = 5.0

#: Seconds until one try to reach a Redis result store has failed. The longer one is for all
#: of a result's bytes: 64 MiB at 6 MiB/s.
STORE_CONNECT_TIMEOUT_S = 3.0
STORE_TIMEOUT_S = 10.0

#: Seconds until one try of the main process has failed, which stores but refusals, revokes and pardons:
#: a fork of the prefork pool waits for it, and Celery's loop with it.
MAIN_STORE_TIMEOUT_S = 2.0

#: Seconds at most for which a process that ends waits for its last spans to be sent.
TRACES_SENT_S = 1.0


class Composition:
    """Everything that is made from the settings, each at its first use in a process.

    Nothing here opens a connection or imports boto3 before it is used, so the
    parent of prefork children makes none of what they must make themselves.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._dogstatsd = dogstatsd_is_on()
        self.metrics = PerProcess(self._build_metrics)
        self.gauges = Gauges()
        # One task holds at most one connection to each service; a prefork child runs one task.
        slots = settings.slots_max if settings.pool == "gevent" else 1
        self.aws = PerProcess(lambda: AwsSession(metrics=self.metrics.get()))
        self.s3 = PerProcess(lambda: s3_client(self.aws.get(), max_pool_connections=slots))
        self._main_s3 = PerProcess(
            lambda: self.aws.get().client(
                "s3",
                max_attempts=1,
                connect_timeout_s=MAIN_STORE_TIMEOUT_S,
                read_timeout_s=MAIN_STORE_TIMEOUT_S,
            )
        )
        self.leases = PerProcess(self._build_leases)
        self.book = LeaseBook(self.leases.get)
        self.limit = container_limit_bytes(override_mb=settings.memory_limit_mb)
        self.admission = Admission(
            slots_max=settings.slots_max,
            slots=settings.autoscale[1] if settings.autoscale and settings.pool == "gevent" else None,
            bytes_max=settings.inflight_bytes_max or default_bytes_max(self.limit.bytes),
        )
        self.book.admission = self.admission
        self.book.concluded = self._count_concluded
        self.book.begun = self._count_begun
        self.book.put_aside = partial(self._count_delivery, "dead")
        self.parts = PerProcess(
            PartsBuilder(
                settings=settings,
                slots=slots,
                aws=self.aws.get,
                s3=self.s3.get,
                hold=self.admission.hold_response if settings.pool == "gevent" else self._turns().hold,
                metrics=self.metrics.get,
            ).build
        )
        self._pardons: Pardons | None = None
        self._pipe: ChildPipe | None = None
        self._telemetry: Telemetry | None = None
        self._used_bytes: int | None = None  # until the memory guard's first look
        self._tracing: tracing.DatadogTracing | None = None

    def celery_app(self) -> Celery:
        """Return the worker's Celery app with the task under each of its names."""
        app = client_app(self._settings, s3=self.s3)
        app.conf.update(consuming_config(self._settings, self.book))
        app.conf.result_backend_transport_options["batched"] = self._settings.pool == "gevent"
        app.conf.forwarder_admission = self.admission
        app.conf.forwarder_slot_is_empty = self.admission.drop_response
        compression.bound(self._settings.message_bytes_max)
        # Not the tasks' own: children share nothing with the threads of their parent.
        store: Any = client_app(
            self._settings, s3=self._main_s3, store_timeout_s=MAIN_STORE_TIMEOUT_S
        ).backend
        app.conf.forwarder_store = store
        self._pardons = Pardons(note=store.pardon, gate=self.book.unforked)
        self.book.pardon = self._pardons.add
        self._tracing = tracing.begin(
            predict_url=self._settings.predict_url, forks=self._settings.pool == "prefork"
        )
        for name in TASK_NAMES:
            app.register_task(
                ForwardTask(
                    name=name,
                    parts=self.parts.get,
                    track_started=self._settings.track_started,
                    max_deliveries=self._settings.max_deliveries,
                    visibility_timeout_s=self._settings.visibility_timeout_s,
                    tracing=self._tracing,
                )
            )
        return app

    def memory_guard(self) -> MemoryGuard:
        """Return what watches this process's memory and its children's, not yet started."""
        settings = self._settings
        memory = Memory(children=children)
        return MemoryGuard(
            admission=self.admission,
            limit_bytes=self.limit.bytes,
            high=settings.memory_high_percent / 100,
            # Without a cgroup: what is ours alone and our part of what is shared.
            used_bytes=lambda: self._used(self.limit.used_bytes() or memory.sample().proportional_bytes),
            held=lambda: len(self.book),
            running=lambda: len(state.active_requests),  # what waits for its ETA is held, and in no slot
            ended=lambda: self.book.ended,
            ticked=self._tick,
            unforked=self.book.unforked,
            lowers=settings.pool == "gevent",
        )

    def _tick(self) -> None:
        self.book.ticked()
        if self._telemetry is not None:
            self._telemetry.refresh()

    def telemetry(self, *, slots: Callable[[], int]) -> Telemetry | None:
        """Return what tells of the worker's numbers, None where nobody asked; once, before the pool forks.

        ``slots`` returns how many children a prefork pool has.
        """
        settings = self._settings
        if not (settings.http_port or self._dogstatsd or settings.auto):
            return None
        if settings.pool == "prefork":
            self._pipe = ChildPipe(metrics=self.metrics.get(), alive=children)
            signals.task_postrun.connect(self._tell, weak=False)
        self._telemetry = Telemetry(
            settings=settings,
            book=self.book,
            metrics=self.metrics.get(),
            gauges=self.gauges,
            slots=slots if settings.pool == "prefork" else lambda: self.admission.open_slots,
            memory=lambda: (self._used_bytes, self.limit.bytes),
            pipe=self._pipe,
            dogstatsd=self._dogstatsd,
        )
        return self._telemetry

    def close(self) -> None:
        """Close what this process has opened; called once, when it stops."""
        self.parts.if_made(lambda parts: parts.close())
        self.leases.if_made(lambda leases: leases.close())
        self._tell()
        if self._tracing is not None:
            self._tracing.close(TRACES_SENT_S)

    def leave(self) -> None:
        """Close, and say which pardons are lost; called once, when the main process ends."""
        self.close()
        if self._pardons is not None:
            self._pardons.leave()
        if self._telemetry is not None:
            self._telemetry.stop()

    def _build_metrics(self) -> ProcessMetrics:
        if os.getpid() == self._pid:
            return ProcessMetrics(samples_max=dogstatsd.SAMPLES_MAX if self._dogstatsd else 0)
        samples_max = child_counts.SAMPLES_MAX if self._dogstatsd else 0
        return ProcessMetrics(samples_max=samples_max, level_changed=self._tell)

    def _turns(self) -> Turns:
        """Return what makes a prefork child wait with a large response; made before there are any."""
        settings = self._settings
        turns = Turns(
            lock=SharedLock(),
            high_bytes=self.limit.bytes * settings.memory_high_percent / 100,
            used_bytes=self.limit.used_bytes,
            children_max=settings.slots_max,
            siblings=siblings,
        )
        signals.task_postrun.connect(turns.end, weak=False)
        return turns

    def _tell(self, **_: object) -> None:
        """Let the main process know, in a child, what was counted."""
        if self._pipe is not None and os.getpid() != self._pid:
            self._pipe.send(self.metrics.get())

    def _count_concluded(self, delivery: Delivery, outcome: str) -> None:
        """Count what no slot counts: a task that was refused or revoked, or whose message goes back."""
        self.metrics.get().count("forwarder_tasks_total", queue=delivery.queue, outcome=outcome)

    def _count_begun(self, delivery: Delivery) -> None:
        """Count here what a slot takes up: a child that is killed takes what it counted along."""
        self._count_delivery(
            "redelivered" if delivery.redelivered or delivery.number > 1 else "first", delivery
        )

    def _count_delivery(self, kind: str, delivery: Delivery) -> None:
        self.metrics.get().count("forwarder_deliveries_total", queue=delivery.queue, kind=kind)

    def _used(self, used_bytes: int) -> int:
        self._used_bytes = used_bytes
        return used_bytes

    def _build_leases(self) -> Leases:
        settings = self._settings
        if settings.broker_kind == "redis":
            from forwarder.brokers.redis.leases import RedisLeases
            from forwarder.brokers.redis.transport import broker_client

            return RedisLeases(
                client=lambda: broker_client(broker_connection(settings)),
                queues=settings.queues,
                visibility_timeout_s=settings.visibility_timeout_s,
                message_bytes_max=settings.message_bytes_max,
                stock_visibility_timeout_s=settings.stock_visibility_timeout_s,
                batched=settings.pool == "gevent",
            )
        if settings.broker_kind == "sqs":
            from forwarder.brokers.sqs.leases import SqsLeases

            wait_s = sqs_wait_s(settings)
            return SqsLeases(
                client=self._sqs_client(SQS_TIMEOUT_S),
                poller=self._sqs_client(wait_s + SQS_ANSWER_S),
                queue=settings.queues[0],
                queue_url=settings.sqs_url or "",
                visibility_timeout_s=settings.visibility_timeout_s,
                wait_s=wait_s,
            )
        from forwarder.brokers.amqp.copies import Copies
        from forwarder.brokers.amqp.leases import AmqpLeases

        return AmqpLeases(copies=Copies(connect=lambda: broker_connection(settings)), queues=settings.queues)

    def _sqs_client(self, read_timeout_s: float) -> Callable[[], Any]:
        return PerProcess(
            lambda: self.aws.get().client("sqs", max_attempts=1, read_timeout_s=read_timeout_s)
        ).get


def broker_connection(settings: Settings) -> Connection:
    """Return a connection to the broker beside the consumer's, not yet opened."""
    options = {}
    if settings.broker_kind == "redis":
        options = {"socket_timeout": LEASE_TIMEOUT_S, "socket_connect_timeout": LEASE_CONNECT_TIMEOUT_S}
    return client_app(settings).connection_for_write(transport_options=options)


def client_app(
    settings: Settings, *, s3: PerProcess[Any] | None = None, store_timeout_s: float | None = None
) -> Celery:
    """Return a Celery app that reaches the broker and the results, without the task.

    What ``submit`` and ``result`` use, and the base of the worker's app.
    ``store_timeout_s`` bounds one try of a Redis result store instead of the
    defaults; for S3 that is the client's.
    """
    if s3 is None:
        s3 = PerProcess(lambda: s3_client(AwsSession(), max_pool_connections=1))
    app = Celery("forwarder", set_as_current=False, events="forwarder.brokers.events:BoundedEvents")
    app.conf.update(
        **broker_config(settings),
        **_result_config(settings, s3, store_timeout_s),
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Celery gives a new child 4 s to report; fifty of them starting on one core need more.
        worker_proc_alive_timeout=60.0,
    )
    return app


def _result_config(settings: Settings, s3: PerProcess[Any], store_timeout_s: float | None) -> dict[str, Any]:
    backend = "forwarder.results.redis:RedisBackend"
    if settings.result_backend.startswith("s3://"):
        backend = "forwarder.results.s3:S3Backend"
    return {
        "result_backend": f"{backend}+{settings.result_backend}",
        "result_expires": settings.result_expires_s,
        # One backend per process. Stock Celery keeps one per thread, which under
        # gevent is one per task.
        "result_backend_thread_safe": True,
        "result_backend_transport_options": {
            "client": s3.get,
            "looks_first": settings.track_started,
            "patience": Patience(
                bound_s=settings.store_retry_s, store=without_password(settings.result_backend)
            ),
        },
        "redis_max_connections": settings.slots_max + SPARE_CONNECTIONS,
        "redis_socket_keepalive": True,
        # Of one try; redis-py's own retries stay off, because the task tries again itself.
        "redis_socket_timeout": store_timeout_s or STORE_TIMEOUT_S,
        "redis_socket_connect_timeout": store_timeout_s or STORE_CONNECT_TIMEOUT_S,
    }


if not TYPE_CHECKING:  # a type checker would take every misspelt name of this module for a Celery

    def __getattr__(name: str) -> Celery:
        """Return what ``celery -A forwarder.app`` looks for; nothing of it is made at import time."""
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from forwarder.celery_app import tools_app

        return tools_app()
