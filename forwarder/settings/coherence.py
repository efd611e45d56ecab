"""Settings that must fit together; each one alone has been read already."""

from __future__ import annotations

from collections.abc import Mapping

from forwarder.settings.errors import SettingsError
from forwarder.settings.model import Settings
from forwarder.settings.spec import value_of
from forwarder.settings.table import BY_FIELD

#: The source of a setting that nobody gave.
DEFAULT = "default"

#: Read and checked now, but no part of this version acts on them.
NOT_IN_EFFECT = (
    "max_deliveries",
    "drain_timeout_s",
    "autoscale",
    "memory_limit_mb",
    "worker_rss_mb",
    "http_port",
)


def check(settings: Settings, sources: Mapping[str, str]) -> list[str]:
    """Return warnings about combinations; raise SettingsError for one that can't work."""
    _check_sqs(settings)
    _check_hooks(settings)
    _check_timeouts(settings)
    return _timeout_warnings(settings) + _ignored(settings) + _not_in_effect(settings, sources)


def check_packages(settings: Settings) -> None:
    """Raise SettingsError where a worker with these settings lacks a package.

    Apart from ``check``, because ``submit`` and ``result`` need no such package.
    """
    if settings.broker_kind != "sqs" or settings.pool != "prefork":
        return
    try:
        import pycurl  # noqa: F401 - kombu's asynchronous SQS consumer can't do without
    except ImportError as error:
        raise _refused(
            "pool",
            settings,
            "gevent, or prefork with pycurl (pip install 'forwarder[sqs]'), because the broker is sqs://",
        ) from error


def _check_sqs(settings: Settings) -> None:
    if settings.broker_kind != "sqs":
        return
    if settings.sqs_url is None:
        raise _refused("sqs_url", settings, "the queue's URL, because the broker is sqs://")
    if len(settings.queues) != 1:
        raise _refused("queues", settings, "exactly one queue, because the broker is sqs://")


def _check_hooks(settings: Settings) -> None:
    if "logging" in settings.hooks and settings.firehose_stream is None:
        raise _refused("firehose_stream", settings, "a stream name, because the logging hook is on")


def _check_timeouts(settings: Settings) -> None:
    """A task that runs longer than its message stays hidden is run twice at once (celery#5935)."""
    if settings.broker_kind == "redis" and settings.task_timeout_s >= settings.visibility_timeout_s:
        raise _refused(
            "task_timeout_s",
            settings,
            f"seconds below the visibility timeout of {settings.visibility_timeout_s}, "
            "or a task would be given to a second worker while it runs",
        )


def _timeout_warnings(settings: Settings) -> list[str]:
    held_s = settings.task_timeout_s + settings.retry_slot_s
    if settings.broker_kind == "redis" and held_s >= settings.visibility_timeout_s:
        return [
            f"{BY_FIELD['task_timeout_s'].title} and {BY_FIELD['retry_slot_s'].title} together reach the "
            f"visibility timeout of {settings.visibility_timeout_s} s: a task tried again may run twice"
        ]
    return []


def _ignored(settings: Settings) -> list[str]:
    """Return a warning for each setting that is given and that another setting makes pointless."""
    pointless = {
        "max_tasks_per_child": settings.pool == "gevent" and "the gevent pool has no children",
        "sqs_url": settings.broker_kind != "sqs" and "the broker is not sqs://",
        "callback_url": "callback" not in settings.hooks and "the callback hook is off",
        "firehose_stream": "logging" not in settings.hooks and "the logging hook is off",
    }
    return [
        f"{BY_FIELD[field].title} is ignored: {reason}"
        for field, reason in pointless.items()
        if reason and value_of(settings, field) is not None
    ]


def _not_in_effect(settings: Settings, sources: Mapping[str, str]) -> list[str]:
    return [
        f"{spec.title} is not in effect yet: this version reads it and does nothing with it"
        for spec in (BY_FIELD[field] for field in NOT_IN_EFFECT)
        if sources[spec.field] != DEFAULT and value_of(settings, spec.field) != spec.default
    ]


def _refused(field: str, settings: Settings, accepted: str) -> SettingsError:
    spec = BY_FIELD[field]
    return SettingsError(spec.title, spec.show(value_of(settings, field)), accepted)
