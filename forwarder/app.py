"""Composition root: settings to parts to the Celery app; the only place that knows them all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Connection

from forwarder.brokers import compression
from forwarder.brokers.config import (
    SPARE_CONNECTIONS,
    SQS_ANSWER_S,
    broker_config,
    consuming_config,
    sqs_wait_s,
)
from forwarder.brokers.leases import LeaseBook, Leases
from forwarder.brokers.pardons import Pardons
from forwarder.cloud.objects import S3ObjectStore
from forwarder.cloud.per_process import PerProcess
from forwarder.cloud.session import AwsSession, firehose_client_builder, s3_client
from forwarder.forwarding.forwarder import Forwarder
from forwarder.forwarding.payload import ResultShape
from forwarder.forwarding.ports import Hook
from forwarder.forwarding.retry import RetryPolicy
from forwarder.forwarding.task import TASK_NAMES, ForwardTask
from forwarder.hooks.runner import HookRunner
from forwarder.inference.client import InferenceClient
from forwarder.results.patience import Patience
from forwarder.scaling.admission import Admission, default_bytes_max
from forwarder.scaling.container import container_limit_bytes
from forwarder.scaling.memory_guard import MemoryGuard, children
from forwarder.scaling.process_memory import Memory
from forwarder.settings.model import Settings
from forwarder.staging.download import Source
from forwarder.staging.folder import StagingFolder, boot_id
from forwarder.staging.staging import Staging
from forwarder.telemetry.metrics import ProcessMetrics

#: Seconds until one call of the lease keeper's Redis client has failed: renewals must
#: not wait for a broker that is frozen.
LEASE_CONNECT_TIMEOUT_S = 3.0
LEASE_TIMEOUT_S = 5.0

#: Seconds until one SQS call that is no poll has failed: so short that a renewal which hangs ends
#: before the lease does. Tried again by who needs it, so each call is one attempt.
SQS_TIMEOUT_S = 5.0

#: Seconds that calls of Firehose begin apart: at 100 tasks a second five records share one. A task may
#: wait so long in its slot once its result is stored, so not where slots are few.
FIREHOSE_LINGER_S = 0.05
FIREHOSE_SLOTS_MIN = 16

#: Seconds until one try to reach a Redis result store has failed. The longer one is for all
#: of a result's bytes: 64 MiB at 6 MiB/s.
STORE_CONNECT_TIMEOUT_S = 3.0
STORE_TIMEOUT_S = 10.0

#: Seconds until one try of the main process has failed, which stores but refusals, revokes and pardons:
#: a fork of the prefork pool waits for it, and Celery's loop with it.
MAIN_STORE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ProcessParts:
    """What one process needs to run tasks."""

    forwarder: Forwarder
    hooks: HookRunner
    metrics: ProcessMetrics
    inference: InferenceClient

    def close(self) -> None:
        """Close the connections of the hooks and of the inference client."""
        self.hooks.close()
        self.inference.close()


class Composition:
    """Everything that is made from the settings, each at its first use in a process.

    Nothing here opens a connection or imports boto3 before it is used, so the
    parent of prefork children makes none of what they must make themselves.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # One task holds at most one connection to each service; a prefork child runs one task.
        self._per_process = settings.slots_max if settings.pool == "gevent" else 1
        self.aws = PerProcess(AwsSession)
        self.s3 = PerProcess(lambda: s3_client(self.aws.get(), max_pool_connections=self._per_process))
        self._main_s3 = PerProcess(
            lambda: self.aws.get().client(
                "s3",
                max_attempts=1,
                connect_timeout_s=MAIN_STORE_TIMEOUT_S,
                read_timeout_s=MAIN_STORE_TIMEOUT_S,
            )
        )
        self.parts = PerProcess(self._build_parts)
        self.leases = PerProcess(self._build_leases)
        self.book = LeaseBook(self.leases.get)
        self.limit = container_limit_bytes(override_mb=settings.memory_limit_mb)
        self.admission = Admission(
            slots_max=settings.slots_max,
            slots=settings.autoscale[1] if settings.autoscale and settings.pool == "gevent" else None,
            bytes_max=settings.inflight_bytes_max or default_bytes_max(self.limit.bytes),
        )
        self.book.admission = self.admission
        self._pardons: Pardons | None = None

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
        for name in TASK_NAMES:
            app.register_task(
                ForwardTask(
                    name=name,
                    parts=self.parts.get,
                    track_started=self._settings.track_started,
                    max_deliveries=self._settings.max_deliveries,
                    visibility_timeout_s=self._settings.visibility_timeout_s,
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
            used_bytes=lambda: self.limit.used_bytes() or memory.sample().proportional_bytes,
            held=lambda: len(self.book),
            ticked=self._tick,
            unforked=self.book.unforked,
            lowers=settings.pool == "gevent",
        )

    def _tick(self) -> None:
        self.book.ticked()

    def close(self) -> None:
        """Close what this process has opened; called once, when it stops."""
        self.parts.if_made(lambda parts: parts.close())
        self.leases.if_made(lambda leases: leases.close())

    def leave(self) -> None:
        """Close, and say which pardons are lost; called once, when the main process ends."""
        self.close()
        if self._pardons is not None:
            self._pardons.leave()

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

    def _build_parts(self) -> ProcessParts:
        settings = self._settings
        metrics = ProcessMetrics()
        inference = InferenceClient(
            url=settings.predict_url,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s or settings.task_timeout_s,
            total_timeout_s=settings.task_timeout_s,
            response_bytes_max=settings.response_bytes_max,
            idle_max=self._per_process,
            # A child's responses are not in this process, and its one slot holds one.
            hold=self.admission.hold_response if settings.pool == "gevent" else _hold_nothing,
        )
        objects = S3ObjectStore(client=self.s3.get)
        forwarder = Forwarder(
            server=inference,
            staging=self._staging(objects),
            objects=objects,
            metrics=metrics,
            shape=ResultShape(
                wrap=settings.wrap_response,
                status_in_body=settings.status_in_body,
                as_string=settings.serialize_results_as_string,
            ),
            policy=RetryPolicy(slot_budget_s=settings.retry_slot_s, max_retries=settings.max_retries),
            unwrap=settings.unwrap_payload,
            now=partial(datetime.now, UTC),
            sleep=time.sleep,
            uniform=random.uniform,
        )
        hooks = HookRunner(hooks=[self._hook(name, metrics) for name in settings.hooks], metrics=metrics)
        return ProcessParts(forwarder, hooks, metrics, inference)

    def _staging(self, objects: S3ObjectStore) -> Staging:
        settings = self._settings
        sources: dict[str, Source] = {}
        if "s3" in settings.input_schemes:
            sources["s3"] = objects
        if "https" in settings.input_schemes and settings.input_allow:
            import ssl

            from forwarder.addresses import ListedHosts
            from forwarder.staging.https import HttpsSource

            sources["https"] = HttpsSource(
                permits=ListedHosts(settings.input_allow).permits, tls=ssl.create_default_context()
            )
        return Staging(
            folder=StagingFolder(
                parent=Path(settings.stage_folder),
                bytes_max=settings.stage_bytes_max,
                overrun_bytes=settings.destination_bytes_max,
                boot=boot_id(),
            ),
            sources=sources,
            above_bytes=settings.stage_above_bytes,
            input_bytes_max=settings.input_bytes_max,
            answer_bytes_max=settings.destination_bytes_max,
            timeout_s=settings.input_timeout_s,
        )

    def _hook(self, name: str, metrics: ProcessMetrics) -> Hook:
        return self._firehose_hook(metrics) if name == "logging" else self._callback_hook()

    def _firehose_hook(self, metrics: ProcessMetrics) -> Hook:
        from forwarder.cloud.refreshing import RefreshingClient
        from forwarder.hooks.logging import FirehoseHook

        settings = self._settings
        build = firehose_client_builder(
            session=self.aws.get(),
            role_arn=settings.firehose_role_arn,
            max_pool_connections=settings.firehose_max_pool_connections,
        )
        clients = RefreshingClient(service="firehose", build=build, metrics=metrics)
        return FirehoseHook(
            clients=clients,
            stream=settings.firehose_stream or "",
            endpoint=settings.endpoint,
            linger_s=self._linger_s(),
        )

    def _linger_s(self) -> float | None:
        if self._settings.firehose_linger_s is not None:
            return self._settings.firehose_linger_s or None
        return FIREHOSE_LINGER_S if self._per_process >= FIREHOSE_SLOTS_MIN else None

    def _callback_hook(self) -> Hook:
        from forwarder.addresses import AddressGuard
        from forwarder.hooks.callback import CallbackHook
        from forwarder.hooks.callback_http import CallbackPoster
        from forwarder.hooks.signing import Signer

        settings = self._settings
        return CallbackHook(
            poster=CallbackPoster(connections_max=self._per_process),
            default_url=settings.callback_url,
            guard=AddressGuard(settings.callback_allow),
            signer=Signer(settings.callback_secret) if settings.callback_secret else None,
            endpoint=settings.endpoint,
        )


def _hold_nothing(number: int) -> None:
    pass


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
            "patience": Patience(bound_s=settings.store_retry_s),
        },
        "redis_max_connections": settings.slots_max + SPARE_CONNECTIONS,
        "redis_socket_keepalive": True,
        # Of one try; redis-py's own retries stay off, because the task tries again itself.
        "redis_socket_timeout": store_timeout_s or STORE_TIMEOUT_S,
        "redis_socket_connect_timeout": store_timeout_s or STORE_CONNECT_TIMEOUT_S,
    }
