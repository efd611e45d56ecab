"""File descriptors: how many the settings need, and how many this process may have."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

from forwarder.settings.model import Settings

#: The worker itself, and its connections beside the tasks': 15 to 23 were open on an idle one.
BASE = 40
#: What the worker has open for each prefork child: pipes, and the file that tells its memory. A child has
#: fewer: those of its elder brothers, and the connections of one task.
PIPES = 7
#: Connections beyond one per task to each service: see forwarder.brokers.config, SPARE_CONNECTIONS.
SPARE = 20


@dataclass(frozen=True, slots=True)
class Need:
    """How many descriptors one process needs at most, and the sum in words."""

    number: int
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """How many descriptors this process may have: now, and after raising that as far as it may itself."""

    soft: int
    hard: int

    def suffices(self, number: int) -> bool:
        """Return whether so many can be had."""
        return self.hard == resource.RLIM_INFINITY or number <= self.hard


def need(settings: Settings) -> Need:
    """Return what the process that needs the most descriptors needs."""
    slots = settings.slots_max
    shared, each = _shared_and_each(settings)
    if settings.pool == "prefork":
        return Need(shared + slots * each, f"{BASE} + {slots} processes x {PIPES} (their pipes)")
    per_task = " + ".join(f"{number} {what}" for what, number in _of_a_task(settings))
    firehose = shared - BASE - SPARE
    return Need(
        shared + slots * each,
        f"{BASE} + {SPARE} spare + {slots} slots x ({per_task})"
        + (f" + {firehose} (--firehose-max-pool-connections)" if firehose else ""),
    )


def slots_within(settings: Settings, limits: Allowed) -> int | None:
    """Return how many slots the limits suffice for; None is without bound."""
    if limits.hard == resource.RLIM_INFINITY:
        return None
    shared, each = _shared_and_each(settings)
    return max(0, limits.hard - shared) // each


def allowed() -> Allowed:
    """Return the limits of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Allowed(soft=soft, hard=hard)


def raise_soft_limit() -> Allowed:
    """Allow this process and its children as many descriptors as it may allow itself; return the limits."""
    now = allowed()
    # Without a hard limit there may be none to raise to: the kernel has one that no process passes.
    if now.hard != resource.RLIM_INFINITY and now.soft < now.hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now.hard, now.hard))
    return allowed()


def _shared_and_each(settings: Settings) -> tuple[int, int]:
    if settings.pool == "prefork":
        return BASE, PIPES
    firehose = settings.firehose_max_pool_connections if "logging" in settings.hooks else 0
    return BASE + SPARE + firehose, sum(number for _, number in _of_a_task(settings))


def _of_a_task(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield what a slot has open at most: its connections, and files while its answer goes elsewhere."""
    yield "inference", 1
    yield "results", 1
    yield "input or destination", 1
    yield "answer's file, written and read", 2
    if settings.input_schemes:
        yield "input's file", 1
    if "callback" in settings.hooks:
        yield "callback", 1
