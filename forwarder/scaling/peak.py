"""The most memory that the settings allow, with the arithmetic: what ``check`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from forwarder.scaling.admission import default_bytes_max
from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.decisions import hard_cap
from forwarder.settings.model import Settings

#: A worker that has run tasks of a few bytes, with what its prefork children share; and what one of those
#: children has for itself then. Measured with CPython 3.11, results in Redis and no hooks.
BASE_BYTES = 60 * MIB
CHILD_BYTES = 24 * MIB

#: boto3 with one client, in the worker; and what a child has of it for itself, the rest being imported
#: before the fork (28 MiB on SQS instead of 24). Each further client was 1 MiB at most.
AWS_BYTES = 25 * MIB
AWS_CHILD_BYTES = 5 * MIB

#: A gevent slot but for its payload: a greenlet and its connections. Measured: 200 busy ones beside 4.
SLOT_BYTES = 32 * 1024

#: Records of the logging hook on their way to Firehose: of one call, and of one task, which a prefork child
#: sends by itself. As they are, in base64 and in the request. BYTES_MAX and RECORD_BYTES_MAX of the hook.
CALL_BYTES = 3 * 3_000_000
RECORD_BYTES = 3 * 1000 * 1024

#: Bytes of memory for each byte of a payload or response in flight: as it came, unpacked, decoded, encoded.
COPIES = 5


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the sum, in bytes, and how it comes about."""

    bytes: int
    words: str


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that can be used at once, part by part."""

    terms: tuple[Term, ...]
    limit: Limit

    @property
    def bytes(self) -> int:
        """Return the sum."""
        return sum(term.bytes for term in self.terms)

    @property
    def fits(self) -> bool:
        """Return whether that is within the limit."""
        return self.bytes <= self.limit.bytes

    def lines(self) -> list[str]:
        """Return the sum as it is done on paper."""
        width = max(len(mib(number)) for number in (self.bytes, self.limit.bytes))
        rows = [f"{mib(term.bytes):>{width}}  {term.words}" for term in self.terms]
        return [
            *rows,
            f"{mib(self.bytes):>{width}}  at most, of {mib(self.limit.bytes)} ({self.limit.source})",
        ]


def peak(settings: Settings, limit: Limit) -> Peak:
    """Return the most memory that a worker with these settings can use, largest payloads in every slot."""
    by_pool = _prefork if settings.pool == "prefork" else _gevent
    return Peak(tuple(by_pool(settings, limit)), limit)


def task_bytes(settings: Settings) -> int:
    """Return how many bytes of payload and response one task may have in memory."""
    return max(settings.message_bytes_max, settings.stage_above_bytes) + settings.response_bytes_max


def worker_bytes(settings: Settings) -> int:
    """Return how many bytes the worker itself has, which its prefork children share."""
    return sum(term.bytes for term in _worker(settings))


def child_bytes(settings: Settings) -> int:
    """Return how many bytes a prefork child has for itself, its task's payloads aside."""
    return (settings.worker_rss_mb or 0) * MIB or CHILD_BYTES + settings.uses_aws * AWS_CHILD_BYTES


def _prefork(settings: Settings, limit: Limit) -> Iterator[Term]:
    child = child_bytes(settings)
    task = task_bytes(settings) * COPIES
    children, bound = settings.concurrency, "--concurrency"
    if settings.autoscale is not None:
        # By small tasks it grows to as many, and each may have a large one then.
        maximum, minimum = settings.autoscale
        high = settings.memory_high_percent / 100
        cap = hard_cap(limit_bytes=limit.bytes, high=high, child_bytes=child)
        children = max(minimum, min(maximum, cap))
        bound = f"--autoscale {maximum},{minimum}, and {max(0, cap)} fit"
    yield from _worker(settings)
    yield Term(children * child, f"{children} processes ({bound}) x {mib(child)}")
    yield Term(
        children * task,
        f"{children} tasks, one in each, x {COPIES} x {mib(task_bytes(settings))} (--message-bytes-max + "
        "--response-bytes-max)",
    )
    if "logging" in settings.hooks:
        yield Term(
            children * RECORD_BYTES, f"{children} processes x {mib(RECORD_BYTES)} of a record for Firehose"
        )


def _gevent(settings: Settings, limit: Limit) -> Iterator[Term]:
    budget = settings.inflight_bytes_max or default_bytes_max(limit.bytes)
    yield from _worker(settings)
    slots = settings.slots_max
    yield Term(
        slots * SLOT_BYTES,
        f"{slots} slots ({'--concurrency' if settings.autoscale is None else '--autoscale'}) x "
        f"{SLOT_BYTES // 1024} KiB with their connections",
    )
    yield Term(COPIES * budget, f"{COPIES} x {mib(budget)} (--inflight-bytes-max) of tasks in flight")
    # Over the budget nothing more is taken, but what is there has its answer still to come.
    last = task_bytes(settings)
    yield Term(
        COPIES * last,
        f"{COPIES} x {mib(last)} (--message-bytes-max + --response-bytes-max) of the task that passes it",
    )
    if "logging" in settings.hooks:
        yield Term(CALL_BYTES, "records of one call of Firehose")


def _worker(settings: Settings) -> Iterator[Term]:
    yield Term(BASE_BYTES, "the worker itself")
    if settings.uses_aws:
        yield Term(AWS_BYTES, "boto3 and its clients")


def mib(number: int) -> str:
    """Return bytes in words."""
    return f"{number / MIB:,.0f} MiB"
