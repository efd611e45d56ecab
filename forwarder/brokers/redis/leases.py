"""Leases on Redis: taking, settling, renewing and taking over, each in one step on the server.

Deadlines are by the server's clock, so a worker's own clock may be anything.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from forwarder.brokers.deliveries import Death, Delivery, Waiting
from forwarder.brokers.redis import scripts
from forwarder.brokers.redis.dead_letters import letter_of, letter_parts
from forwarder.brokers.redis.grace import Grace
from forwarder.brokers.redis.intake import TAKE_MAX, Take, Taken, lists_of, read_reply
from forwarder.brokers.redis.messages import arrival_of
from forwarder.brokers.redis.refusal import text_of
from forwarder.brokers.redis.stock import StockLeftovers
from forwarder.redis_batches import RedisBatches

log = logging.getLogger(__name__)

#: Leases that one call of the script SWEEP gives back: no other client waits long for the server.
SWEEP_MAX = 100
#: Bytes of a waiting message that is looked into for its arrival time.
LOOK_BYTES_MAX = 65536
#: Seconds of one round in which further calls begin; renewals are due again soon after.
SWEEP_S = 1.0


class RedisLeases:
    """The Redis side of deliveries; see :class:`forwarder.brokers.deliveries.Leases`.

    ``client`` makes the ``redis.Redis`` of this object, once, at its first use; its
    socket timeouts bound how long a method blocks. ``stock_visibility_timeout_s``
    is that of stock workers which share the queues. With ``batched``, for gevent,
    what is settled at a time is settled in one round trip. Thread-safe.
    """

    def __init__(
        self,
        *,
        client: Callable[[], Any],
        queues: Iterable[str],
        visibility_timeout_s: float,
        message_bytes_max: int,
        stock_visibility_timeout_s: float,
        batched: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_client = client
        self._batches = RedisBatches(client=self._connected) if batched else None
        self._queues = dict.fromkeys(queues)
        self._lease_ms = int(visibility_timeout_s * 1000)
        self._message_bytes_max = message_bytes_max
        self._monotonic = monotonic
        self._process = uuid.uuid4().hex
        self._making = threading.Lock()
        self._client: Any = None
        self._scripts: dict[str, Any] = {}
        self._taken: dict[str, Taken] = {}
        self._run: str | None = None
        self._stock = StockLeftovers(run_script=self._run_script, timeout_s=stock_visibility_timeout_s)
        self._grace = Grace(visibility_timeout_s=visibility_timeout_s, monotonic=monotonic)

    def __repr__(self) -> str:
        return f"<RedisLeases process={self._process} queues={list(self._queues)}>"

    # The channel's side: what is sent and read on its own connection.

    def meet(self) -> None:
        """Learn which run of the server the next messages come from. Blocks."""
        self._note_run(self._ask_run())

    def intake(self, queue: str) -> str:
        """Return the list into which this process waits for messages of a queue."""
        return f"forwarder:{{{queue}}}:intake:{self._process}"

    def begin_take(
        self, queues: Sequence[str], lists: Sequence[str], most: int, bytes_left: int
    ) -> tuple[Take, list[Any]]:
        """Return a take of at most so many messages and the arguments of its script.

        It ends with the message that makes it ``bytes_left`` or more.
        """
        self._queues.update(dict.fromkeys(queues))  # one that remote control added is swept, too
        most = min(most, TAKE_MAX)
        take = Take(queues=queues, lists=lists, most=most, sent_s=self._monotonic(), run=self._run)
        together = max(1, min(bytes_left, self._message_bytes_max))
        head = [most, self._lease_ms, self._message_bytes_max, together, self._process, len(queues)]
        return take, [*head, *queues, *lists]

    def end_take(self, take: Take, reply: Iterable[Sequence[Any]]) -> list[Taken]:
        """Return the messages that a take brought; each is to be delivered or given back. No IO."""
        taken = list(read_reply(take, reply))
        self._taken.update((one.lease, one) for one in taken)
        return taken

    def give_back(self, undelivered: Sequence[Taken]) -> None:
        """Put back what was taken and can't be delivered; it doesn't count. Blocks."""
        for one in reversed(undelivered):
            self._taken.pop(one.lease, None)
            self._run_script(scripts.GIVE_BACK, one.queue, one.lease, 0, int(not one.again))

    def empty_intake(self, queue: str) -> None:
        """Put back what arrived while this process waited and will not be taken. Blocks."""
        while self._connected().lmove(self.intake(queue), queue, "LEFT", "RIGHT") is not None:
            pass

    # The book's side.

    def recount(self, message: Any) -> bool:
        """Return False: the count was raised when the message was taken."""
        return False

    def receive(self, message: Any) -> Delivery:
        """Return the delivery that a message of the channel came with. No IO."""
        one = self._taken.pop(message.delivery_tag)
        return Delivery(
            tag=one.lease,
            queue=one.queue,
            number=one.number,
            confirmed_s=one.taken_s,
            message=message,
            redelivered=one.again,
            receipt=one,
            payload_bytes=len(one.item or b""),
        )

    def ack(self, delivery: Delivery) -> bool:
        """Remove the message and its count."""
        return self._settle(scripts.ACK, delivery)

    def requeue(self, delivery: Delivery) -> bool:
        """Put the message back into its list; its delivery counts."""
        return self._settle(scripts.GIVE_BACK, delivery, 1)

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put the messages back into their lists, uncounted; return those that are lost."""
        lost = []
        for delivery in reversed(deliveries):  # the first is taken first again
            one: Taken = delivery.receipt
            if not one.settled and not self._settle(scripts.GIVE_BACK, delivery, 0):
                one.settled = False  # lost is told again, when the rest has to be tried again
                lost.append(delivery)
        return lost

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        """Move the message to the list ``<queue>.dead``."""
        one: Taken = delivery.receipt
        return self._settle(scripts.PUT_ASIDE, delivery, *letter_parts(one.item, one.task_id, death))

    def put_off(self, delivery: Delivery) -> bool:
        """Put the message at the end of the list that is looked into last; its delivery doesn't count."""
        return self._settle(scripts.PUT_OFF, delivery, lists_of(delivery.queue)[-1])

    def refusal(self, error: Exception) -> str | None:
        """Return the server's text, None also where it is a replica: the primary is elsewhere. No IO."""
        is_answer = isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError)
        return text_of(cast(ResponseError, error)) if is_answer else None

    def letter(self, delivery: Delivery) -> tuple[str | None, int]:
        """Return the id and the bytes that the dead letters would show for the message. No IO."""
        return letter_of(delivery.receipt, delivery.death("", ""))

    def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Extend the leases and return those that are lost.

        One that is missing was given to a peer; but where the server started anew
        since the lease was last confirmed, it may have forgotten what it knew, and
        the lease is opened again.
        """
        missing: list[Delivery] = []
        for queue, group in itertools.groupby(sorted(deliveries, key=_queue), key=_queue):
            missing += self._renew(queue, list(group))
        # Asked after the leases were: asked before, a server that starts between the
        # two would seem to be the one that knew them.
        run = self._ask_run()
        self._grace.note_contact()
        self._note_run(run)
        return [delivery for delivery in missing if not self._reopen(delivery, run)]

    def take_over(self) -> int:
        """Give back what dead workers left, once the living have had the time to renew theirs."""
        if self._grace.lasts:
            return 0
        now, queues = self._monotonic(), list(self._queues)
        try:
            moved = sum(self._sweep(queue, until_s=now + SWEEP_S) for queue in queues)
        except Exception:
            # Where this is refused or gets no answer, owners may not have been able to renew.
            self._grace.begin()
            raise
        return moved + self._stock.sweep(queues, now)

    def waiting(self) -> int:
        """Return how many messages wait. Blocks for a round trip."""
        with self._connected().pipeline(transaction=False) as pipeline:
            for queue in list(self._queues):
                for name in lists_of(queue):
                    pipeline.llen(name)
            return sum(pipeline.execute())

    def backlog(self) -> Sequence[Waiting]:
        """Return what waits in each queue, its lists of all priorities. Blocks for a round trip a queue."""
        found = []
        for queue in list(self._queues):
            lists = self._run_script(scripts.LOOK, LOOK_BYTES_MAX, *lists_of(queue))
            arrivals = (arrival_of(item) for _, item in lists if item)
            found.append(Waiting(queue, sum(number for number, _ in lists), tuple(arrivals)))
        return found

    def disconnected(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return none: a lease outlives the connection."""
        return []

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.connection_pool.disconnect()

    def _sweep(self, queue: str, *, until_s: float) -> int:
        moved = 0
        while True:
            number = int(self._run_script(scripts.SWEEP, queue, SWEEP_MAX, *lists_of(queue)))
            moved += number
            if number < SWEEP_MAX or self._monotonic() >= until_s:
                return moved

    def _settle(self, script: str, delivery: Delivery, *args: Any) -> bool:
        one: Taken = delivery.receipt
        one.settled = True  # before the server knows: a renewal must not open it again meanwhile
        try:
            done = self._run_script(script, delivery.queue, delivery.tag, *args)
            if not done and self._forgotten(one, run := self._ask_run()):
                done = self._open_again(delivery, run) and self._run_script(
                    script, delivery.queue, delivery.tag, *args
                )
        except BaseException:
            one.settled = False
            raise
        return bool(done)

    def _renew(self, queue: str, deliveries: list[Delivery]) -> list[Delivery]:
        """Return those whose lease is missing."""
        run = self._run
        by_tag = {delivery.tag.encode(): delivery for delivery in deliveries}
        missing = set(self._run_script(scripts.RENEW, queue, self._lease_ms, *by_tag))
        for tag, delivery in by_tag.items():
            if tag not in missing:
                delivery.receipt.run = run
        return [by_tag[tag] for tag in missing if not by_tag[tag].receipt.settled]

    def _reopen(self, delivery: Delivery, run: str) -> bool:
        """Return whether a missing lease was opened again; if not, it is lost."""
        one: Taken = delivery.receipt
        return self._forgotten(one, run) and self._open_again(delivery, run)

    def _forgotten(self, one: Taken, run: str) -> bool:
        """Return whether the server may have lost what it knew of a missing lease."""
        return one.run != run and one.item is not None

    def _open_again(self, delivery: Delivery, run: str) -> bool:
        """Register a delivery anew, under a new tag; False when somebody else has its message."""
        one: Taken = delivery.receipt
        lease = self._run_script(
            scripts.REOPEN, one.queue, self._lease_ms, self._process, one.item, one.home, one.number
        )
        if lease is None:
            return False
        delivery.tag, one.run = lease.decode(), run
        log.warning("lease_reopened task_id=%s queue=%s", delivery.task_id, delivery.queue)
        return True

    def _note_run(self, run: str) -> None:
        if run != self._run:
            self._grace.begin()
            self._run = run

    def _ask_run(self) -> str:
        return str(self._connected().info("server")["run_id"])

    def _run_script(self, script: str, *args: Any) -> Any:
        client = self._connected()
        try:
            if self._batches is not None:
                return self._run_batched(script, args)
            if script not in self._scripts:
                self._scripts[script] = client.register_script(script)
            return self._scripts[script](args=args)
        except ReadOnlyError:  # a failover: these connections lead to who was the primary
            client.connection_pool.disconnect(inuse_connections=False)
            raise

    def _run_batched(self, script: str, args: Sequence[Any]) -> Any:
        batches = cast(RedisBatches, self._batches)
        try:
            return batches.run(("EVALSHA", scripts.sha1(script), 0, *args))[0]
        except NoScriptError:  # the server was started anew
            return batches.run(("EVAL", script, 0, *args))[0]

    def _connected(self) -> Any:
        with self._making:
            if self._client is None:
                self._client = self._make_client()
            return self._client


def _queue(delivery: Delivery) -> str:
    return delivery.queue
