"""What this process holds: messages it has taken and not settled, and the broker that settles them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from forwarder.brokers.background import ForkGate
from forwarder.brokers.deliveries import Death, Delivery, Leases, Settlement, body_bytes
from forwarder.brokers.room import Admission, EverySlot

log = logging.getLogger(__name__)


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
        #: Called with each delivery whose task got its outcome here and not from its slot: the code of a
        #: message that was refused, "revoked", or "requeued" where it got none and its message goes back.
        self.concluded: Callable[[Delivery, str], object] = lambda delivery, outcome: None
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
