"""The worker's four routes, from before it waits for the inference server until it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol

from forwarder import __version__
from forwarder.brokers.leases import LeaseBook
from forwarder.scaling.admission import Admission
from forwarder.scaling.memory_guard import children
from forwarder.settings import Resolved, SettingsError
from forwarder.settings.model import Settings
from forwarder.settings.shown import shown
from forwarder.settings.table import BY_FIELD
from forwarder.telemetry import status
from forwarder.telemetry.exchange import Answer, Route, as_json
from forwarder.telemetry.http import HttpServer, listen
from forwarder.telemetry.prometheus import CONTENT_TYPE
from forwarder.watch import Watch

#: The page while the worker waits for its inference server: a model that never comes must be seen.
WAITING = b'forwarder_dependency_up{dependency="inference"} 0\nforwarder_live 1\n'


class Numbers(Protocol):
    """The worker's metrics."""

    def render(self) -> tuple[bytes, str]:
        """Return the page for Prometheus and its content type."""

    def values(self) -> Sequence[tuple[object, float]]:
        """Return every counter and gauge by its series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What there is to tell once the worker is put together."""

    hostname: str
    task_names: Sequence[str]
    watch: Watch
    book: LeaseBook
    admission: Admission
    numbers: Numbers


class Endpoints:
    """Answers from what is at hand: nothing here blocks, asks a service or takes a lock.

    Until ``running`` is set the worker waits for its inference server: it is alive, and
    not ready.
    """

    def __init__(
        self,
        *,
        resolved: Resolved,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.running: Running | None = None
        self._settings: Settings = resolved.settings
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._fixed: dict[str, Any] = {
            "pid": os.getpid(),
            "pool": self._settings.pool,
            "queues": list(self._settings.queues),
            "started_at": now().isoformat(timespec="seconds"),
            "settings": shown(resolved),
        }

    @property
    def routes(self) -> Mapping[str, Route]:
        """Return each path with what answers it."""
        return {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status": self._status,
        }

    def serve(self) -> HttpServer | None:
        """Open the port and serve, where the settings name one. Raises SettingsError where that fails."""
        settings = self._settings
        if not settings.http_port:
            return None
        try:
            listener = listen(settings.http_host, settings.http_port)
        except OSError as error:
            spec = BY_FIELD["http_port"]
            where = f"{settings.http_host} ({BY_FIELD['http_host'].flag})"
            raise SettingsError(
                spec.title, str(settings.http_port), f"a port that is free on {where}: {error.strerror}"
            ) from error
        self._fixed["versions"] = {"forwarder": __version__, **status.versions()}
        server = HttpServer(listener=listener, routes=self.routes)
        server.start()
        return server

    def _livez(self) -> Answer:
        return _verdict("live", self._not_live())

    def _readyz(self) -> Answer:
        running = self.running
        age_s = running.watch.readiness.age_s if running else None
        return _verdict("ready", self._not_ready(), age_s=age_s and round(age_s, 1))

    def _metrics(self) -> Answer:
        if self.running is None:
            return Answer(WAITING, content_type=CONTENT_TYPE)
        page, content_type = self.running.numbers.render()
        return Answer(page, content_type=content_type)

    def _status(self) -> Answer:
        told = {
            **self._fixed,
            "uptime_s": round(self._monotonic() - self._began_s, 1),
            "live": not self._not_live(),
            "not_live": self._not_live(),
            "ready": not self._not_ready(),
            "not_ready": self._not_ready(),
        }
        if self.running is not None:
            told |= self._of_the_running(self.running)
        return as_json(told)

    def _not_live(self) -> tuple[str, ...]:
        return self.running.watch.liveness.reasons() if self.running else ()

    def _not_ready(self) -> tuple[str, ...]:
        if self.running is None:
            return ("starting",)
        watch = self.running.watch
        return (*(("starting",) if watch.starting else ()), *watch.readiness.reasons())

    def _of_the_running(self, running: Running) -> dict[str, Any]:
        admission, watch = running.admission, running.watch
        deliveries, payload_bytes = running.book.glance()
        return {
            "hostname": running.hostname,
            "task_names": list(running.task_names),
            "in_flight": status.in_flight(deliveries, payload_bytes=payload_bytes, now_s=self._monotonic()),
            "limits": {
                "slots_max": admission.slots_max,
                "slots": admission.open_slots,
                "inflight_bytes_max": admission.bytes_max,
                "response_bytes": admission.response_bytes,
            },
            "children": sorted(children()) if self._settings.pool == "prefork" else [],
            "ages_s": {
                "leases": round(watch.leases.age_s, 3),
                "loop": round(watch.loop.age_s, 3),
                "memory": round(watch.memory.age_s, 3),
            },
            "metrics": status.numbers(running.numbers.values()),
        }


def _verdict(name: str, reasons: Sequence[str], **more: Any) -> Answer:
    return as_json(
        {name: not reasons, "reasons": list(reasons), **more},
        HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK,
    )
