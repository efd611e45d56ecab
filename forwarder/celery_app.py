"""What ``celery -A forwarder.app`` gets: an app for Celery's tools and Flower."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any, NoReturn

from celery import Celery

from forwarder.app import client_app
from forwarder.settings import resolve
from forwarder.settings.aws import unify_region
from forwarder.settings.files import CONFIG_ENVIRON, read_mapping

log = logging.getLogger(__name__)


@functools.cache
def tools_app() -> Celery:
    """Return the app, the same at every call; its settings are the environment's and ``FORWARDER_CONFIG``'s.

    It reaches the broker and the results, and runs no task. Raises SettingsError.
    """
    unify_region(os.environ)
    file_name = os.environ.get(CONFIG_ENVIRON)
    document = read_mapping(Path(file_name)) if file_name else {}
    resolved = resolve({}, os.environ, document, file_sources=dict.fromkeys(document, f"file {file_name}"))
    for warning in resolved.warnings:
        log.warning("%s", warning)
    app = client_app(resolved.settings)
    app.conf.broker_transport = None  # kombu's own, of which Flower reads the name; leases are the worker's
    app.Worker = _refuse_to_work  # type: ignore[assignment,misc]
    return app


def _refuse_to_work(*args: Any, **options: Any) -> NoReturn:
    """Stand where ``celery worker`` looks for a worker: Celery's own knows no task of ours and drops each."""
    raise SystemExit("celery worker can't run these tasks: start the worker with python -m forwarder")
