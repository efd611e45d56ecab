"""Dead letters: messages put aside with the reason, and what an operator can do with them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from forwarder.brokers.deliveries import Death, is_storable

#: An object in the headers of a dead letter: the fields of :class:`Death`.
DEATH_HEADER = "x-forwarder-death"
#: An integer in the headers of a copy: the deliveries before it was published.
DELIVERIES_HEADER = "x-forwarder-deliveries"

UNKNOWN_CODE = "unknown"


class NoSuchLetter(Exception):
    """None of the dead letters has the id."""


class NoSuchQueue(Exception):
    """The queue that a message is for does not exist; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message that was put aside.

    ``id`` is the task id, or for a message without a readable one an id made
    from its body: the same at every look. ``task_id`` is what the message's
    results are stored under, None where there is none. ``code``, ``error``,
    ``queue``, ``deliveries`` and ``at`` are those of :class:`Death`.
    """

    id: str
    task_id: str | None
    task: str
    code: str
    error: str
    queue: str
    deliveries: int
    at: str
    body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLetter:
    """A dead letter with all that its message holds. Headers may quote the payload as the body does."""

    letter: DeadLetter
    headers: Mapping[str, Any] = field(repr=False)
    body: str = field(repr=False)


class DeadLetters(Protocol):
    """The dead letters of a worker's queues, oldest first, queue by queue.

    Every method blocks for round trips to the broker and raises what its client
    raises. A dead letter queue that does not exist is an empty one. Several
    letters may have one id; what is done to an id is done to all of them.
    """

    def list(self, limit: int) -> Sequence[DeadLetter]:
        """Return the first ``limit`` letters; they stay where they are."""

    def show(self, letter_id: str) -> OpenedLetter:
        """Return one letter with its message, which stays where it is. Raises NoSuchLetter."""

    def requeue(
        self, ids: Collection[str] | None, before: Callable[[DeadLetter], None]
    ) -> Sequence[DeadLetter]:
        """Send letters (None: all) to the queues they came from, counted anew; return those that went.

        ``before`` is called with each letter just before it goes, while no worker
        can have it yet. What it raises ends the call; that letter stays. Raises
        NoSuchQueue where a letter's queue is gone by now, which likewise stays.
        """

    def purge(self, ids: Collection[str] | None) -> Sequence[DeadLetter]:
        """Delete letters for good (None: all) and return them."""

    def close(self) -> None:
        """Close the connections."""


def dead_queue(queue: str) -> str:
    """Return the name of a queue's dead letter queue. (SQS allows no dot and has its own.)"""
    return f"{queue}.dead"


def with_death(headers: Mapping[str, Any], death: Death) -> dict[str, Any]:
    """Return a dead letter's headers: the message's own and the reason."""
    return {**headers, DEATH_HEADER: dataclasses.asdict(death)}


def without_death(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a message that starts anew: neither a reason nor earlier deliveries."""
    return {name: value for name, value in headers.items() if name not in (DEATH_HEADER, DELIVERIES_HEADER)}


def earlier_deliveries(headers: Any) -> int:
    """Return how many deliveries a message's headers tell of; 0 for whatever is not a count."""
    told = headers.get(DELIVERIES_HEADER) if isinstance(headers, Mapping) else None
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else 0


def read_letter(headers: Any, body: str | bytes, *, queue: str) -> DeadLetter:
    """Return what a message of ``queue``'s dead letters tells about itself, whatever shape it has.

    A message that something else put there (an operator, the broker's own
    policy) has no reason with it: its code is ``unknown``.
    """
    headers = headers if isinstance(headers, Mapping) else {}
    told = headers.get(DEATH_HEADER)
    death: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    raw = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    task_id = _text(headers.get("id")) or None
    deliveries = death.get("deliveries")
    return DeadLetter(
        # What can't be printed can't be typed either.
        id=task_id if task_id and task_id.isprintable() else f"body-{hashlib.sha256(raw).hexdigest()[:16]}",
        task_id=task_id if is_storable(task_id) else None,
        task=_text(headers.get("task")),
        code=_text(death.get("code")) or UNKNOWN_CODE,
        error=_text(death.get("error")),
        queue=_text(death.get("queue")) or queue,
        deliveries=deliveries if isinstance(deliveries, int) else 0,
        at=_text(death.get("at")),
        body_bytes=len(raw),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
