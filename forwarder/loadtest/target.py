"""What is under load: a broker, worker and model server started for the run, or a deployment."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forwarder import __version__
from forwarder.loadtest.processes import Look, Sampler
from forwarder.loadtest.worker_log import WorkerLog
from forwarder.scaling.container import MIB, container_limit_bytes
from forwarder.settings import Resolved, Settings
from forwarder.settings.coherence import DEFAULT
from forwarder.settings.redact import without_password
from forwarder.settings.spec import value_of
from forwarder.settings.table import SPECS
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a run sends to and looks at. ``look``, ``in_flight`` return None where nothing is seen."""

    title: str
    settings: Settings
    log: WorkerLog | None
    look: Callable[[], Look | None]
    in_flight: Callable[[], int | None]
    limit_mb: float | None


def is_own(resolved: Resolved) -> bool:
    """Return whether nobody has named a broker: then the run starts its own."""
    return all(resolved.sources[field] == DEFAULT for field in ("broker_url", "sqs_url"))


@contextmanager
def own(resolved: Resolved, *, env: Mapping[str, str]) -> Iterator[Target]:
    """Start a broker, the sample model server and a worker with the environment; stop them all.

    Blocks until the worker consumes. Raises NotInstalled or StartFailed.
    """
    with Valkey() as valkey, ModelServer() as model:
        settings = dataclasses.replace(
            resolved.settings,
            broker_url=valkey.database(0),
            result_backend=valkey.database(1),
            predict_url=model.predict_url,
            health_url=model.health_url,
        )
        own_env = {
            **env,
            **model.env,
            "FORWARDER_BROKER_URL": settings.broker_url,
            "FORWARDER_RESULT_BACKEND": settings.result_backend,
        }
        with Worker(pool=settings.pool, env=own_env) as worker:
            worker.wait_ready()
            yield Target(
                title=f"own worker, {settings.pool}",
                settings=settings,
                log=WorkerLog(worker.log_path),
                look=Sampler(pid=worker.pid).look,
                in_flight=lambda: int(model.stats()["in_flight"]),
                limit_mb=container_limit_bytes(override_mb=settings.memory_limit_mb).bytes / MIB,
            )


@contextmanager
def deployed(resolved: Resolved, *, worker_pid: int | None, worker_log: Path | None) -> Iterator[Target]:
    """Use what the settings name; a worker on this machine is watched by its pid and its log."""
    settings = resolved.settings
    look: Callable[[], Look | None] = _nothing
    limit_mb = None
    if worker_pid is not None:
        look = Sampler(pid=worker_pid).look
        limit = container_limit_bytes(override_mb=settings.memory_limit_mb, pid=worker_pid)
        limit_mb = limit.bytes / MIB
    yield Target(
        title=f"{without_password(settings.broker_url)}, queue {settings.queues[0]}",
        settings=settings,
        log=None if worker_log is None else WorkerLog(worker_log, from_end=True),
        look=look,
        in_flight=_nothing,
        limit_mb=limit_mb,
    )


def shown(resolved: Resolved) -> dict[str, str]:
    """Return the settings that somebody gave as they may be printed."""
    return {
        spec.field: spec.show(value_of(resolved.settings, spec.field))
        for spec in SPECS
        if resolved.sources[spec.field] != DEFAULT
    }


def machine() -> dict[str, str]:
    """Return what a reader must know of this machine to compare figures."""
    return {
        "processors": str(os.cpu_count()),
        "memory": f"{container_limit_bytes(override_mb=None).bytes / MIB:.0f} MB",
        "python": platform.python_version(),
        "forwarder": __version__,
    }


def _nothing() -> None:
    return None
