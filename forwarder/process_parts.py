"""What one process needs to run tasks, made from the settings: once, and in each process for itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from forwarder.cloud.objects import S3ObjectStore
from forwarder.cloud.session import AwsSession, firehose_client_builder
from forwarder.forwarding.forwarder import Forwarder
from forwarder.forwarding.payload import ResultShape
from forwarder.forwarding.ports import Hook
from forwarder.forwarding.retry import RetryPolicy
from forwarder.hooks.runner import HookRunner
from forwarder.inference.client import InferenceClient
from forwarder.settings.model import Settings
from forwarder.staging.download import Source
from forwarder.staging.folder import StagingFolder, boot_id
from forwarder.staging.staging import Staging
from forwarder.staging.threshold import Threshold
from forwarder.telemetry.metrics import ProcessMetrics

#: Seconds that calls of Firehose begin apart: at 100 tasks a second five records share one. A task may
#: wait so long in its slot once its result is stored, so not where slots are few.
FIREHOSE_LINGER_S = 0.05
FIREHOSE_SLOTS_MIN = 16


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsBuilder:
    """Makes the parts.

    ``slots`` is how many tasks the process runs at a time, each with at most one connection to
    each service. ``aws`` and ``s3`` return the process's session and client, ``hold`` is told
    how many bytes of a response a slot holds, and blocks for so many seconds at most.
    """

    settings: Settings
    slots: int
    aws: Callable[[], AwsSession]
    s3: Callable[[], Any]
    hold: Callable[[int, float], object]
    metrics: Callable[[], ProcessMetrics]

    def build(self) -> ProcessParts:
        """Return the parts of this process. Opens nothing."""
        settings = self.settings
        metrics = self.metrics()
        inference = InferenceClient(
            url=settings.predict_url,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s or settings.task_timeout_s,
            total_timeout_s=settings.task_timeout_s,
            response_bytes_max=settings.response_bytes_max,
            idle_max=self.slots,
            hold=self.hold,
        )
        objects = S3ObjectStore(client=self.s3)
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
        hooks = HookRunner(hooks=[self._hook(name) for name in settings.hooks], metrics=metrics)
        return ProcessParts(forwarder, hooks, metrics, inference)

    def _staging(self, objects: S3ObjectStore) -> Staging:
        settings = self.settings
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
            threshold=Threshold(settings.stage_above_bytes, follows=settings.auto),
            input_bytes_max=settings.input_bytes_max,
            answer_bytes_max=settings.destination_bytes_max,
            timeout_s=settings.input_timeout_s,
        )

    def _hook(self, name: str) -> Hook:
        return self._firehose_hook() if name == "logging" else self._callback_hook()

    def _firehose_hook(self) -> Hook:
        from forwarder.cloud.refreshing import RefreshingClient
        from forwarder.hooks.logging import FirehoseHook

        settings = self.settings
        build = firehose_client_builder(
            session=self.aws(),
            role_arn=settings.firehose_role_arn,
            max_pool_connections=settings.firehose_max_pool_connections,
        )
        clients = RefreshingClient(service="firehose", build=build)
        return FirehoseHook(
            clients=clients,
            stream=settings.firehose_stream or "",
            endpoint=settings.endpoint,
            linger_s=linger_s(settings, slots=self.slots),
        )

    def _callback_hook(self) -> Hook:
        from forwarder.addresses import AddressGuard
        from forwarder.hooks.callback import CallbackHook
        from forwarder.hooks.callback_http import CallbackPoster
        from forwarder.hooks.signing import Signer

        settings = self.settings
        return CallbackHook(
            poster=CallbackPoster(connections_max=self.slots),
            default_url=settings.callback_url,
            guard=AddressGuard(settings.callback_allow),
            signer=Signer(settings.callback_secret) if settings.callback_secret else None,
            endpoint=settings.endpoint,
        )


def linger_s(settings: Settings, *, slots: int) -> float | None:
    """Return how many seconds apart a process with so many slots calls Firehose; None is at once."""
    if settings.firehose_linger_s is not None:
        return settings.firehose_linger_s or None
    return FIREHOSE_LINGER_S if slots >= FIREHOSE_SLOTS_MIN else None
