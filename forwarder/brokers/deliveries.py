"""What a broker hands over: a message under its lease, how it ends, and the part of a broker that ends it."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

#: Of a task id, which becomes part of a key. S3 takes keys of 1,024 bytes of UTF-8:
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
ID_CHARS_MAX = 200


def is_storable(task_id: object) -> bool:
    """Return whether results can be stored under an id: a short text in UTF-8 (JSON has others)."""
    if not isinstance(task_id, str) or not 0 < len(task_id) <= ID_CHARS_MAX:
        return False
    try:
        task_id.encode()
    except UnicodeEncodeError:
        return False
    return True


class Settlement(enum.Enum):
    """How a delivery ends on the broker."""

    ACK = "ack"  # done: the message is removed
    REQUEUE = "requeue"  # back to the queue; the delivery counts towards the limit
    HAND_BACK = "hand_back"  # back to the queue as if it had not been delivered
    PUT_ASIDE = "put_aside"  # into the dead letters
    PUT_OFF = "put_off"  # behind what else waits, as if it had not been delivered: its dead letter is refused


def body_bytes(message: Any) -> int:
    """Return the size of a message's body; 0 where it has none that can be read."""
    body = getattr(message, "body", None)
    return len(body) if isinstance(body, (bytes, str)) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Why a message is in the dead letters.

    ``deliveries`` counts the last one too; ``at`` is UTC in ISO 8601.
    """

    code: str
    error: str
    queue: str
    deliveries: int
    at: str


@dataclass(slots=True, eq=False, kw_only=True)
class Delivery:
    """One message that this process holds unacked.

    ``tag`` is how the broker knows it (lease id, receipt handle, delivery tag);
    ``number`` counts the deliveries of the message, this one included, and
    ``redelivered`` tells of earlier ones, also of those that don't count.
    ``confirmed_s`` is the monotonic time just before the lease was last taken or
    renewed. ``receipt`` is whatever else the broker's part needs to settle it.
    ``request`` is set once the message has become a Celery request. ``blamed`` is
    set where the lease is lost and the task itself may be why. ``payload_bytes`` is
    the size of the body, of all that came where there is none that can be read,
    counted until the message is settled; ``taken_s`` is the monotonic time at which
    that began.
    """

    tag: str
    queue: str
    number: int
    confirmed_s: float
    message: Any = field(repr=False)
    redelivered: bool = False
    receipt: Any = field(default=None, repr=False)
    request: Any = field(default=None, repr=False)
    blamed: bool = False
    payload_bytes: int = 0
    taken_s: float = 0.0

    @property
    def task_id(self) -> str | None:
        """Return the task id that the message's headers name, if results can be stored under it."""
        headers = self.message.headers
        task_id = headers.get("id") if isinstance(headers, dict) else None
        return task_id if is_storable(task_id) else None

    @property
    def begun(self) -> bool:
        """Return whether a slot has it."""
        return self.request is not None and self.request.time_start is not None

    @property
    def early(self) -> bool:
        """Return whether it is held until a moment that its sender named (ETA)."""
        return not self.begun and self.request is not None and self.request.eta is not None

    @property
    def slot_s(self) -> float | None:
        """Return the monotonic time from which it has filled a slot, None while it is held until its ETA."""
        if self.request is None or self.request.eta is None:
            return self.taken_s
        if not self.begun:
            return None
        return time.monotonic() - (time.time() - float(self.request.time_start))

    def death(self, code: str, error: str) -> Death:
        """Return the reason to put this delivery aside, as of now."""
        return Death(
            code=code,
            error=error,
            queue=self.queue,
            deliveries=self.number,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one queue, and the arrival times in the messages that are next, as they were written.

    ``arrivals`` is None on a broker that shows no message without giving it.
    """

    queue: str
    number: int
    arrivals: tuple[object, ...] | None = None


class Leases(Protocol):
    """A broker's side of deliveries, one object per process; it outlives connections.

    Every method blocks for at most a few seconds and may raise what the broker's
    client raises; the book catches that, and asks ``refusal`` what it means. All
    may be called from any thread or greenlet. Settling a delivery whose lease is no
    longer this process's does nothing on the broker and returns False.
    """

    def recount(self, message: Any) -> bool:
        """Publish the message again with a higher count where the broker doesn't count by itself.

        Returns True when that was done: the message is settled and not to be run.
        """

    def receive(self, message: Any) -> Delivery:
        """Return the delivery that a kombu message came with. No IO."""

    def ack(self, delivery: Delivery) -> bool:
        """Remove the message for good."""

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back where it is taken next; its delivery counts."""

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put the messages back where they are taken next; these deliveries don't count.

        Returns those whose lease is no longer this process's. When it raises it is
        called again with all of them, and goes on with the rest.
        """

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        """Move the message to the dead letters of its queue."""

    def put_off(self, delivery: Delivery) -> bool:
        """Put the message behind what else waits, as far as the broker can; this delivery doesn't count."""

    def refusal(self, error: Exception) -> str | None:
        """Return in a few words what the broker refused, None where it gave no answer. No IO."""

    def letter(self, delivery: Delivery) -> tuple[str | None, int]:
        """Return the id and the bytes that the dead letters would show for the message. No IO.

        The id is None where it would be made of a body that was too large to be taken.
        """

    def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Extend the leases (setting ``confirmed_s``) and return those that are lost."""

    def take_over(self) -> int:
        """Give tasks of dead workers back to their queues, where the broker doesn't; return how many."""

    def disconnected(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the deliveries whose lease ended with the consumer's connection. No IO."""

    def waiting(self) -> int | None:
        """Return how many messages wait in the queues, at least; None where that isn't known now."""

    def backlog(self) -> Sequence[Waiting]:
        """Ask the broker what waits in each queue, exactly; on SQS that is billed."""

    def close(self) -> None:
        """Send what is buffered and close connections."""
