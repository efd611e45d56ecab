"""Settings that must fit together; each one alone has been read already."""

from __future__ import annotations

from forwarder.settings.errors import SettingsError
from forwarder.settings.model import Settings
from forwarder.settings.spec import value_of
from forwarder.settings.table import BY_FIELD

#: The source of a setting that nobody gave.
DEFAULT = "default"

#: Seconds that a worker needs after its drain: to hand back what still runs, flush
#: hooks and close connections, with the watchdog's own time.
ENDING_S = 10.0

#: Seconds for which SQS lets a message be held. Renewals do not start the 12 hours
#: anew, and one that would reach beyond them is refused.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
SQS_HELD_S_MAX = 12 * 3600

#: Seconds below which leases on SQS are at the mercy of one slow answer. They are
#: renewed every third of the timeout; two calls of up to 5 s must fit in the rest.
SQS_VISIBILITY_S_SHORT = 15


def check(settings: Settings) -> list[str]:
    """Return warnings about combinations; raise SettingsError for one that can't work."""
    _check_sqs(settings)
    _check_hooks(settings)
    _check_stop(settings)
    _check_memory(settings)
    _check_staging(settings)
    return _lease_warnings(settings) + _wait_warnings(settings) + _ignored(settings)


def held_s(settings: Settings) -> float:
    """Return how many seconds a task may be held: its input, the waits and the last call, the result store.

    Earlier calls that failed slowly come on top.
    """
    return settings.input_timeout_s + settings.task_timeout_s + settings.retry_slot_s + settings.store_retry_s


def _check_sqs(settings: Settings) -> None:
    if settings.broker_kind != "sqs":
        return
    if settings.sqs_url is None:
        raise _refused("sqs_url", settings, "the queue's URL, because the broker is sqs://")
    if len(settings.queues) != 1:
        raise _refused("queues", settings, "exactly one queue, because the broker is sqs://")
    visibility_timeout_s = settings.visibility_timeout_s
    if visibility_timeout_s > SQS_HELD_S_MAX:
        raise _refused(
            "visibility_timeout_s", settings, f"at most {SQS_HELD_S_MAX}, which is SQS's own limit"
        )
    if settings.task_timeout_s + visibility_timeout_s > SQS_HELD_S_MAX:
        raise _refused(
            "task_timeout_s",
            settings,
            f"at most {SQS_HELD_S_MAX} together with the visibility timeout of {visibility_timeout_s}: "
            "SQS renews no lease beyond that",
        )


def _check_hooks(settings: Settings) -> None:
    if "logging" in settings.hooks and settings.firehose_stream is None:
        raise _refused("firehose_stream", settings, "a stream name, because the logging hook is on")


def _check_stop(settings: Settings) -> None:
    """A worker that is killed before it has handed its tasks back keeps them until their leases end."""
    grace_s = settings.termination_grace_s
    if grace_s is None:
        return
    if grace_s <= ENDING_S:
        raise _refused("termination_grace_s", settings, f"more than the {ENDING_S:g} s that stopping takes")
    if settings.drain_timeout_s + ENDING_S > grace_s:
        raise _refused(
            "drain_timeout_s",
            settings,
            f"at most {grace_s - ENDING_S:g}: the worker is killed {grace_s:g} s after it is told to stop "
            f"({BY_FIELD['termination_grace_s'].flag}), and stopping takes {ENDING_S:g} s after the drain",
        )


def _check_memory(settings: Settings) -> None:
    if settings.memory_low_percent >= settings.memory_high_percent:
        raise _refused(
            "memory_low_percent",
            settings,
            f"less than {settings.memory_high_percent}, above which the pool shrinks "
            f"({BY_FIELD['memory_high_percent'].flag})",
        )


def _check_staging(settings: Settings) -> None:
    """Room for one answer is kept, so that what has begun can end; the largest input must fit beside it."""
    needed = settings.input_bytes_max + settings.destination_bytes_max
    if settings.stage_bytes_max < needed:
        flags = " and ".join(BY_FIELD[field].flag for field in ("input_bytes_max", "destination_bytes_max"))
        raise _refused("stage_bytes_max", settings, f"at least {needed}, what {flags} are together")


def _lease_warnings(settings: Settings) -> list[str]:
    """Return a warning for each way in which tasks are likely to run, and be paid for, twice."""
    visibility_timeout_s = settings.visibility_timeout_s
    on_sqs = settings.broker_kind == "sqs"
    # RabbitMQ delivers again at once, or as its own consumer_timeout says.
    leased = settings.broker_kind != "amqp"
    results_expire = not settings.result_backend.startswith("s3://")
    warnings = []
    if on_sqs and visibility_timeout_s < SQS_VISIBILITY_S_SHORT:
        warnings.append(
            f"{BY_FIELD['visibility_timeout_s'].title} is {visibility_timeout_s} s: below "
            f"{SQS_VISIBILITY_S_SHORT} s one slow answer of SQS loses leases, and tasks run twice"
        )
    if on_sqs and (longest_s := held_s(settings) + visibility_timeout_s) > SQS_HELD_S_MAX:
        fields = (
            "input_timeout_s",
            "task_timeout_s",
            "retry_slot_s",
            "store_retry_s",
            "visibility_timeout_s",
        )
        warnings.append(
            f"{', '.join(BY_FIELD[field].flag for field in fields)} together are {longest_s:g} s: SQS renews "
            f"no lease beyond {SQS_HELD_S_MAX} s, and a task that takes so long runs twice"
        )
    if leased and results_expire and settings.result_expires_s <= visibility_timeout_s:
        warnings.append(
            f"{BY_FIELD['result_expires_s'].title} is {settings.result_expires_s} s: when a worker dies, its "
            f"finished tasks come back after {visibility_timeout_s} s, find no result and run twice"
        )
    return warnings


def _wait_warnings(settings: Settings) -> list[str]:
    """Return a warning where a worker that stops leaves a poll behind, which takes a task in vain."""
    wait_s, drain_s = settings.sqs_wait_s, settings.drain_timeout_s
    if settings.broker_kind != "sqs" or wait_s is None or wait_s < drain_s:
        return []
    return [
        f"{BY_FIELD['sqs_wait_s'].title} is {wait_s} s, not less than the drain timeout of {drain_s:g} s: "
        "what the last poll of a worker that stops brings is held until its visibility timeout"
    ]


def _ignored(settings: Settings) -> list[str]:
    """Return a warning for each setting that is given and that another setting makes pointless."""
    pointless = {
        "max_tasks_per_child": settings.pool == "gevent" and "the gevent pool has no children",
        "max_memory_per_child_mb": settings.pool == "gevent" and "the gevent pool has no children",
        "worker_rss_mb": settings.pool == "gevent" and "the gevent pool has no children",
        "sqs_wait_s": settings.broker_kind != "sqs" and "the broker is not sqs://",
        "sqs_url": settings.broker_kind != "sqs" and "the broker is not sqs://",
        "input_allow": "https" not in settings.input_schemes and "https:// inputs are off",
        "callback_url": "callback" not in settings.hooks and "the callback hook is off",
        "firehose_linger_s": "logging" not in settings.hooks and "the logging hook is off",
        "firehose_stream": "logging" not in settings.hooks and "the logging hook is off",
    }
    return [
        f"{BY_FIELD[field].title} is ignored: {reason}"
        for field, reason in pointless.items()
        if reason and value_of(settings, field) not in (None, ())
    ]


def _refused(field: str, settings: Settings, accepted: str) -> SettingsError:
    spec = BY_FIELD[field]
    return SettingsError(spec.title, spec.show(value_of(settings, field)), accepted)
