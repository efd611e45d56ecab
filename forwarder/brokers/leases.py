"""What this process holds: messages it has taken and not settled, and the broker that settles them."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from forwarder.brokers.background import ForkGate
from forwarder.brokers.room import Admission, EverySlot

log = logging.getLogger(__name__)

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
    the size of the body, counted while the message is in flight; ``taken_s`` is
    the monotonic time at which that began.
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
    client raises; the book catches that. All may be called from any thread or
    greenlet. Settling a delivery whose lease is no longer this process's does
    nothing on the broker and returns False.
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


class LeaseBook:
    """The deliveries that this process holds; thread-safe.

    A delivery leaves the book when it is settled or lost. What could not be
    settled because the broker was away stays as owed, and its lease is renewed
    until ``settle_owed`` succeeds: acked under its lease, whatever connection
    there is by then.
    """

    def __init__(
        self, leases: Callable[[], Leases], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        #: What other threads than the pool's own are inside of while they work.
        self.unforked = ForkGate()
        #: Called when a slot became free outside of the main thread, whose event loop may be asleep.
        self.wake: Callable[[], object] = lambda: None
        #: Called with each delivery that the broker counts and that is not to count against its task.
        self.pardon: Callable[[Delivery], object] = lambda delivery: None
        #: Called with each message that was refused, and with the code of its failure.
        self.refused: Callable[[Delivery, str], object] = lambda delivery, code: None
        #: Whether messages that were asked for before a stop may still come after it.
        self.expecting: Callable[[], bool] = lambda: False
        #: Whether what there is room for in slots is taken. Asked for each take; never blocks.
        self.admission: Admission = EverySlot()
        #: Called with each delivery that is acked, as its slot becomes free.
        self.acked: Callable[[Delivery], object] = lambda delivery: None
        #: Called about once a second, in any thread: what is admitted may have changed.
        self.ticked: Callable[[], object] = lambda: None
        #: How many deliveries have left the book, however they ended.
        self.ended = 0
        #: Whether the last look for messages got an answer, where that has no connection to tell by (SQS).
        self.answered = True
        self._leases = leases
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._held: dict[int, Delivery] = {}
        self._payload_bytes = 0
        self._owed: dict[int, tuple[Delivery, Settlement, Death | None]] = {}
        self._handing_back = threading.Lock()

    def __repr__(self) -> str:
        # Always the same: kombu tells connections apart by the repr of their options.
        return "<LeaseBook>"

    def __json__(self) -> str:
        """Let kombu write the connection's options into the answer to ``inspect stats``."""
        return repr(self)

    @property
    def leases(self) -> Leases:
        """Return this process's side of the broker."""
        return self._leases()

    def open(self, message: Any) -> Delivery:
        """Enter a received message and return its delivery."""
        delivery = self.leases.receive(message)
        delivery.payload_bytes = body_bytes(message)
        delivery.taken_s = self._monotonic()
        with self._changed:
            self._held[id(delivery)] = delivery
            self._payload_bytes += delivery.payload_bytes
        return delivery

    def held(self) -> list[Delivery]:
        """Return what is in flight: held and not yet settled."""
        with self._changed:
            return list(self._held.values())

    def glance(self) -> tuple[list[Delivery], int]:
        """Return what is in flight and the bytes of its payloads, without a lock: for native threads.

        Under gevent a lock of greenlets is not for another native thread, and its holder may be stuck.
        """
        return list(self._held.copy().values()), self._payload_bytes

    def __contains__(self, delivery: Delivery) -> bool:
        """Return whether a delivery is in flight."""
        return id(delivery) in self._held

    def __len__(self) -> int:
        """Return the number of deliveries in flight."""
        return len(self._held)

    def leased(self) -> list[Delivery]:
        """Return every delivery whose lease must be renewed: in flight or owed."""
        with self._changed:
            return [*self._held.values(), *(delivery for delivery, _, _ in self._owed.values())]

    def settle(self, delivery: Delivery, how: Settlement, death: Death | None = None) -> None:
        """Settle one delivery that is in flight; does nothing for one that is not.

        ``death`` goes with PUT_ASIDE. Blocks for the broker's answer; trouble with
        the broker is not raised.
        """
        if (how is Settlement.PUT_ASIDE) != (death is not None):
            raise ValueError("a delivery that is put aside has a death, and no other has")
        if self._take(delivery):
            if how is Settlement.ACK:
                self.acked(delivery)
            self._settle(delivery, how, death)

    def settle_owed(self) -> None:
        """Try again what could not be settled. Blocks; never raises."""
        with self._changed:
            owed = list(self._owed.values())
        for delivery, how, death in owed:
            with self._changed:
                if self._owed.pop(id(delivery), None) is None:
                    continue  # lost meanwhile
            if not self._settle(delivery, how, death):
                return  # the broker is still away

    def hand_back(self, deliveries: Iterable[Delivery]) -> None:
        """Hand back those that are in flight, in one go. Never raises.

        One caller after the other: who closes the connection must not overtake
        who still gives back what came over it.
        """
        with self.unforked, self._handing_back:
            mine = [delivery for delivery in deliveries if self._take(delivery)]
            if mine:
                try:
                    lost = self.leases.hand_back(mine)
                except Exception as error:  # noqa: BLE001 - whatever it was, they must not be forgotten
                    log.warning("hand_back_failed number=%d error=%s", len(mine), type(error).__name__)
                    self._owe((delivery, Settlement.HAND_BACK, None) for delivery in mine)
                else:
                    log.info("handed_back number=%d", len(mine) - len(lost))
                    for delivery in lost:
                        log.warning("lease_lost task_id=%s at=hand_back", delivery.task_id)
                        self._pardon(delivery)

    def lose(self, delivery: Delivery) -> bool:
        """Strike out a delivery whose lease is gone; return whether its task is still running.

        This process lives, so it was not the task that ended the lease: where the
        message will be run again it is pardoned.
        """
        with self._changed:
            owed = self._owed.pop(id(delivery), None)
        running = self._take(delivery)
        if running or (owed and owed[1] is Settlement.HAND_BACK):
            self._pardon(delivery)
        return running

    def wait_empty(self, timeout_s: float) -> bool:
        """Block until nothing is in flight; return whether that came before the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout_s)

    def room(self, most: int) -> int:
        """Return how many messages may be taken now by who may hold ``most``."""
        held = len(self._held)
        return self.admission.room(free=most - held, held=held, payload_bytes=self._payload_bytes)

    def bytes_left(self) -> int:
        """Return how many bytes of messages may be taken now; less than 1 is none."""
        return self.admission.bytes_left(self._payload_bytes)

    def wait_room(self, most: int, timeout_s: float) -> bool:
        """Block until there is room for a message; return whether that came before the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.room(most) > 0, timeout_s)

    def _pardon(self, delivery: Delivery) -> None:
        if not delivery.blamed:
            self.pardon(delivery)

    def _take(self, delivery: Delivery) -> bool:
        """Strike out a delivery; False when somebody else did."""
        with self._changed:
            taken = self._held.pop(id(delivery), None) is not None
            if taken:
                self.ended += 1
                self._payload_bytes -= delivery.payload_bytes
            self._changed.notify_all()
            return taken

    def _settle(self, delivery: Delivery, how: Settlement, death: Death | None) -> bool:
        """Return False when the broker could not be reached; the settlement is then owed."""
        try:
            with self.unforked:
                ours = self._apply(delivery, how, death)
        except Exception as error:  # noqa: BLE001 - whatever it was, the message must not be forgotten
            log.warning(
                "settle_failed task_id=%s how=%s error=%s", delivery.task_id, how.value, type(error).__name__
            )
            self._owe([(delivery, how, death)])
            return False
        if not ours:
            log.warning("lease_lost task_id=%s at=%s", delivery.task_id, how.value)
        delivery.message.delivery = None  # the two refer to each other, and one holds the body
        return True

    def _owe(self, debts: Iterable[tuple[Delivery, Settlement, Death | None]]) -> None:
        with self._changed:
            self._owed.update((id(debt[0]), debt) for debt in debts)

    def _apply(self, delivery: Delivery, how: Settlement, death: Death | None) -> bool:
        leases = self.leases
        if how is Settlement.ACK:
            return leases.ack(delivery)
        if how is Settlement.REQUEUE:
            return leases.requeue(delivery)
        if death is not None:
            return leases.put_aside(delivery, death)
        lost = leases.hand_back([delivery])
        for each in lost:
            self._pardon(each)
        return not lost
