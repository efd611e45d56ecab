"""What this process holds: messages it has taken and not settled, and the broker that settles them."""

from __future__ import annotations

import enum
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from forwarder.brokers.background import ForkGate, in_background
from forwarder.brokers.deliveries import Death, Delivery, Leases, Settlement, body_bytes
from forwarder.brokers.refused_letters import RefusedLetters
from forwarder.brokers.room import Admission, EverySlot
from forwarder.forwarding.record import REQUEUED

log = logging.getLogger(__name__)

#: Seconds, from and to, for which a message fills a slot before it is put off once more.
PUT_OFF_PAUSE_S = (0.5, 1.5)


class Answer(enum.Enum):
    """What the broker said to a settlement."""

    DONE = enum.auto()  # also where the lease was lost
    REFUSED = enum.auto()
    NONE = enum.auto()  # it is away


class LeaseBook:
    """The deliveries that this process holds; thread-safe.

    A delivery leaves the book when it is settled or lost. What could not be
    settled because the broker was away stays as owed, and its lease is renewed
    until ``settle_owed`` succeeds: acked under its lease, whatever connection
    there is by then. It takes no slot, but its bytes count. What the broker takes
    no dead letter of goes back to its queue, again and again until it does.
    """

    def __init__(
        self,
        leases: Callable[[], Leases],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        in_background: Callable[[Callable[[], None]], None] = in_background,
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
        #: Called with each delivery that a slot begins to run, for the numbers.
        self.begun: Callable[[Delivery], object] = lambda delivery: None
        #: Called with each delivery that went into the dead letters, for the numbers.
        self.put_aside: Callable[[Delivery], object] = lambda delivery: None
        #: Called with each delivery that is acked, as its slot becomes free.
        self.acked: Callable[[Delivery], object] = lambda delivery: None
        #: Called about once a second, in any thread: what is admitted may have changed.
        self.ticked: Callable[[], object] = lambda: None
        #: How many deliveries have left the book, however they ended.
        self.ended = 0
        #: The queues whose dead letters the broker refuses.
        self.refused_letters = RefusedLetters()
        #: Whether the last look for messages was served: SQS has no connection to tell by, and a Redis
        #: server that refuses writes has one.
        self.answered = True
        self._leases = leases
        self._monotonic = monotonic
        self._sleep = sleep
        self._uniform = uniform
        self._in_background = in_background
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
        delivery.payload_bytes = body_bytes(message) or delivery.payload_bytes
        delivery.taken_s = self._monotonic()
        self._hold(delivery)
        return delivery

    def held(self) -> list[Delivery]:
        """Return what is in flight: held and not yet settled."""
        with self._changed:
            return list(self._held.values())

    def glance(self) -> tuple[list[Delivery], int]:
        """Return what is in flight and the bytes of all payloads, without a lock: for native threads.

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

    def settle(self, delivery: Delivery, how: Settlement, death: Death | None = None) -> bool:
        """Settle one delivery that is in flight; does nothing for one that is not.

        ``death`` goes with PUT_ASIDE. Blocks for the broker's answer; trouble with
        the broker is not raised. Returns False where the broker refuses: what was to
        be put aside then goes back to its queue, and that is concluded here.
        """
        if (how is Settlement.PUT_ASIDE) != (death is not None):
            raise ValueError("a delivery that is put aside has a death, and no other has")
        if self._take(delivery):
            if how is Settlement.ACK:
                self.acked(delivery)
            return self._settle(delivery, how, death) is not Answer.REFUSED
        return True

    def settle_owed(self) -> None:
        """Try again what could not be settled. Blocks; never raises."""
        with self._changed:
            owed = list(self._owed.values())
        for delivery, how, death in owed:
            if self._write_off(delivery) is None:
                continue  # lost meanwhile
            if self._settle(delivery, how, death, again=True) is Answer.NONE:
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
        owed = self._write_off(delivery)
        running = self._take(delivery)
        if running or owed in (Settlement.HAND_BACK, Settlement.PUT_OFF):
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
        return self.admission.bytes_left(held=len(self._held), payload_bytes=self._payload_bytes)

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

    def _hold(self, delivery: Delivery) -> None:
        with self._changed:
            self._held[id(delivery)] = delivery
            self._payload_bytes += delivery.payload_bytes

    def _settle(
        self, delivery: Delivery, how: Settlement, death: Death | None, *, again: bool = False
    ) -> Answer:
        """Return what the broker said; what it did not do is owed, or the message put off."""
        try:
            with self.unforked:
                ours = self._apply(delivery, how, death)
        except Exception as error:  # noqa: BLE001 - whatever it was, the message must not be forgotten
            refusal = self.leases.refusal(error)
            if refusal and how is Settlement.PUT_ASIDE:
                self.refused_letters.note(delivery.queue, refusal)
                self._put_off(delivery)
                return Answer.REFUSED
            if not (refusal and again):  # many may be refused, round after round
                what = refusal or type(error).__name__
                log.warning("settle_failed task_id=%s how=%s error=%s", delivery.task_id, how.value, what)
            self._owe([(delivery, how, death)])
            return Answer.REFUSED if refusal else Answer.NONE
        if not ours:
            log.warning("lease_lost task_id=%s at=%s", delivery.task_id, how.value)
        elif how is Settlement.PUT_ASIDE:
            self.put_aside(delivery)
            self.refused_letters.end(delivery.queue)
        delivery.message.delivery = None  # the two refer to each other, and one holds the body
        return Answer.DONE

    def _put_off(self, delivery: Delivery) -> None:
        """Let a message go back whose dead letter is refused.

        The first time at once, so that many don't hold up what is behind them; then each
        fills a slot for about a second, so that they don't go round and round.
        """
        self.concluded(delivery, REQUEUED)
        self._hold(delivery)

        def put_off(pause_s: float = 0.0) -> None:
            self._sleep(pause_s)
            self.settle(delivery, Settlement.PUT_OFF)
            self.wake()

        if not (delivery.redelivered or delivery.number > 1):
            put_off()
            return
        try:
            self._in_background(partial(put_off, self._uniform(*PUT_OFF_PAUSE_S)))
        except RuntimeError:  # no thread is to be had
            put_off()

    def _owe(self, debts: Iterable[tuple[Delivery, Settlement, Death | None]]) -> None:
        with self._changed:
            for debt in debts:
                self._owed[id(debt[0])] = debt
                self._payload_bytes += debt[0].payload_bytes

    def _write_off(self, delivery: Delivery) -> Settlement | None:
        """Strike out a debt and return what was owed, None where nothing was."""
        with self._changed:
            debt = self._owed.pop(id(delivery), None)
            if debt is None:
                return None
            self._payload_bytes -= delivery.payload_bytes
            self._changed.notify_all()
            return debt[1]

    def _apply(self, delivery: Delivery, how: Settlement, death: Death | None) -> bool:
        leases = self.leases
        if how is Settlement.ACK:
            return leases.ack(delivery)
        if how is Settlement.REQUEUE:
            return leases.requeue(delivery)
        if how is Settlement.PUT_OFF:
            return leases.put_off(delivery)
        if death is not None:
            return leases.put_aside(delivery, death)
        lost = leases.hand_back([delivery])
        for each in lost:
            self._pardon(each)
        return not lost
