"""How messages are asked for on Redis, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kombu.transport.redis import PRIORITY_STEPS, Channel

#: Messages of one take: a reply stays small, and peers get their share of a short queue.
TAKE_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One call of the script TAKE.

    ``lists`` are the Redis lists in the order they are taken from: those of the
    first priority for every queue, then of the next. ``run`` is what was known
    of the server when it was sent.
    """

    queues: Sequence[str]
    lists: Sequence[str]
    most: int
    sent_s: float
    run: str | None


@dataclass(slots=True, kw_only=True)
class Taken:
    """One message as it was taken: leased and counted.

    ``again`` tells of earlier deliveries, also of those that don't count.
    ``home`` is the list it came from. ``item`` is None where it is larger than
    the limit; ``item_bytes`` and, where one could be found, ``task_id`` then tell
    about it. ``run`` is the run of the server that was known before the lease was
    last confirmed. ``settled`` is set once nothing is to be done any more.
    """

    lease: str
    queue: str
    home: str
    number: int
    again: bool
    taken_s: float
    item: bytes | None = field(repr=False)
    item_bytes: int
    task_id: str | None = None
    run: str | None = None
    settled: bool = False


def read_reply(take: Take, reply: Iterable[Sequence[Any]]) -> Iterator[Taken]:
    """Yield the messages of a reply to TAKE."""
    for place, lease, number, again, item, *rest in reply:
        length, task_id = rest or (len(item), None)
        yield Taken(
            lease=lease.decode(),
            queue=take.queues[place % len(take.queues)],
            home=take.lists[place],
            number=number,
            again=bool(again),
            taken_s=take.sent_s,
            item=item,
            item_bytes=length,
            task_id=task_id.decode(errors="replace") if task_id else None,
            run=take.run,
        )


def lists_of(queue: str) -> list[str]:
    """Return the lists that kombu keeps a queue in, one per priority step."""
    return [queue, *(f"{queue}{Channel.sep}{step}" for step in PRIORITY_STEPS[1:])]


def list_for(queue: str, priority: Any) -> str:
    """Return the list that kombu puts a message of a priority into; 0 for whatever is none."""
    if not isinstance(priority, int):
        return queue
    return lists_of(queue)[sum(step <= priority for step in PRIORITY_STEPS[1:])]
