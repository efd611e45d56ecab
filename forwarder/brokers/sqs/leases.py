"""SQS's side of deliveries: a lease is the message's visibility timeout."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from forwarder.aws_errors import describe, error_code
from forwarder.brokers.dead_letters import DEATH_HEADER, DELIVERIES_HEADER, read_letter
from forwarder.brokers.deliveries import Death, Delivery, Waiting
from forwarder.brokers.sqs.calls import GONE, QueueCalls, sendable, tens
from forwarder.brokers.sqs.dead_letters import DeadQueues
from forwarder.brokers.sqs.deletes import DeleteBuffer, Uniform
from forwarder.brokers.sqs.messages import RawMessage, copy_of, earlier_deliveries, open_message

log = logging.getLogger(__name__)

#: How long after its wait an answer may be on its way, in seconds: ``close`` waits so long for
#: the last poll, because what SQS gives to a closed connection counts, and is hidden from all.
ANSWER_S = 1.0


class SettlementRefused(Exception):
    """SQS did not take a single settlement; its word for why is the message."""


class SqsLeases:
    """The leases of one SQS queue; see :class:`forwarder.brokers.deliveries.Leases`.

    ``client`` returns the process's boto3 client, ``poller`` the one for long polls
    of ``wait_s``, whose calls may take longer. A receipt handle may keep working after
    its message went to somebody else, so nothing is done with one whose lease has
    ended by our own monotonic clock.
    """

    def __init__(
        self,
        *,
        client: Callable[[], Any],
        poller: Callable[[], Any],
        queue: str,
        queue_url: str,
        visibility_timeout_s: int,
        wait_s: int,
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        self._client = client
        self._queue = queue
        self._visibility_timeout_s = visibility_timeout_s
        self._wait_s = wait_s
        self._clock = clock
        self._calls = QueueCalls(client=client, poller=poller, queue_url=queue_url)
        self._dead = DeadQueues(client=client, queue_url=queue_url)
        self._deletes = DeleteBuffer(delete=self._delete, clock=clock, uniform=uniform)
        self._idle = threading.Condition()
        self._fetches = 0
        self._fetched_by_s = 0.0
        self._closed = False
        self._loose: dict[str, tuple[RawMessage, float]] = {}
        self._waiting = 0
        #: Set whenever a message was opened or settled: a slot may be free.
        self.changed = threading.Event()

    @property
    def client(self) -> Any:
        """Return the process's SQS client."""
        return self._client()

    @property
    def loose(self) -> int:
        """Return how many messages were fetched and not yet received."""
        return len(self._loose)

    @property
    def polling(self) -> bool:
        """Return whether a poll is on its way that may still bring something."""
        return self._fetches > 0 and self._clock() < self._fetched_by_s

    @property
    def closed(self) -> bool:
        """Return whether ``close`` was called: nothing more is to be fetched."""
        return self._closed

    def fetch(self, number: int, wanted: Callable[[], bool]) -> Sequence[RawMessage]:
        """Take up to ``number`` (1 to 10) messages from the queue, for ``receive`` to open.

        Blocks for a long poll. What arrives when it is no longer ``wanted`` is
        handed back at once. Raises botocore's errors.
        """
        asked_s = self._clock()
        with self._fetching(asked_s + self._wait_s + ANSWER_S):
            messages = self._calls.receive(
                number, wait_s=self._wait_s, visibility_timeout_s=self._visibility_timeout_s
            )
            self._waiting = number if len(messages) == number else 0
            # SQS answers within the wait; an answer that took longer was late on its way.
            taken_s = min(self._clock(), asked_s + self._wait_s)
            with self._idle:
                self._loose.update({raw["ReceiptHandle"]: (raw, taken_s) for raw in messages})
            if self._closed or not wanted():
                self.release()
                return []
            return messages

    def release(self) -> None:
        """Hand back what was fetched and not received. Blocks for a call; never raises."""
        with self._idle:
            loose = list(self._loose.values())
            self._loose.clear()
        try:
            self.hand_back([self._delivery(raw, taken_s, message=None) for raw, taken_s in loose])
        except Exception as error:  # noqa: BLE001 - their leases end by themselves
            log.warning("release_failed number=%d error=%s", len(loose), describe(error))

    def recount(self, message: Any) -> bool:
        """Return False: SQS counts by itself."""
        return False

    def receive(self, message: Any) -> Delivery:
        """Return the delivery that a kombu message came with. No IO."""
        raw = message.delivery_info["sqs_message"]
        with self._idle:
            # One that was handed back meanwhile is lost from the start.
            _, taken_s = self._loose.pop(raw["ReceiptHandle"], (raw, -math.inf))
        self.changed.set()
        return self._delivery(raw, taken_s, message=message)

    def ack(self, delivery: Delivery) -> bool:
        """Remove the message within a fraction of a second. Does not block."""
        self.changed.set()
        if not self._is_live(delivery):
            return False
        self._deletes.add(delivery)
        return True

    def requeue(self, delivery: Delivery) -> bool:
        """Make the message visible again. Blocks for one call."""
        self.changed.set()
        if not self._is_live(delivery):
            return False
        code = self._calls.set_visibility([delivery], 0).get(0)
        if code is not None and code not in GONE:
            raise SettlementRefused(code)
        return code is None

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put copies that don't tell of this delivery into the queue, then remove the messages.

        SQS can't lower its count. What it takes no copy of is made visible instead,
        and counts. Returns those whose lease has ended. Blocks for a call per ten
        messages, two where copies are refused.
        """
        self.changed.set()
        mine = [each for each in deliveries if each.receipt is not None]
        lost = [each for each in mine if not self._is_live(each)]
        for batch in sendable([each for each in mine if each not in lost]):
            url = self._calls.queue_url
            copies = [copy_of(each.receipt, url, {DELIVERIES_HEADER: each.number - 1}) for each in batch]
            try:
                failed = self._calls.send(copies)
            except Exception as error:
                if error_code(error) is None:
                    raise  # no answer: another call would only wait for the next one
                log.warning("hand_back_counts number=%d error=%s", len(batch), describe(error))
                failed = dict.fromkeys(range(len(batch)), "")
            for number, delivery in enumerate(batch):
                if number not in failed:
                    self._deletes.add(delivery)
                    delivery.receipt = None  # not a second copy, when the rest has to be tried again
            self._calls.set_visibility([batch[number] for number in failed], 0)
        return lost

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        """Move the message to the dead letters. Blocks for one call, at first for four."""
        self.changed.set()
        if not self._is_live(delivery):
            return False
        url = self._dead.target()
        letter = copy_of(delivery.receipt, url, {DEATH_HEADER: dataclasses.asdict(death)})
        try:
            self.client.send_message(QueueUrl=url, **letter)
        except Exception as error:
            if error_code(error) != "InvalidParameterValue":
                raise
            # So large that the reason does not fit in; the log has it.
            self.client.send_message(QueueUrl=url, **copy_of(delivery.receipt, url, {}))
        self._deletes.add(delivery)
        return True

    def put_off(self, delivery: Delivery) -> bool:
        """Send a copy, which is about the last to be received. Blocks as ``hand_back``."""
        return not self.hand_back([delivery])

    def refusal(self, error: Exception) -> str | None:
        """Return SQS's word for what it answered. No IO."""
        return str(error) if isinstance(error, SettlementRefused) else error_code(error)

    def letter(self, delivery: Delivery) -> tuple[str | None, int]:
        """Return the id and the bytes that the dead letters would show for the message. No IO."""
        headers, body = open_message(delivery.receipt)
        shown = read_letter(headers, body, queue=self._queue)
        return shown.id, shown.body_bytes

    def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Extend the leases of which a third is over; return those that are lost.

        Blocks for a call per ten. When SQS can't be reached, that is raised as
        long as no lease has ended by it.
        """
        lost: list[Delivery] = []
        unreached: Exception | None = None
        third_s = self._visibility_timeout_s / 3
        # One that has ended is not asked for: it would be taken from who has the message by now.
        live = [each for each in deliveries if self._is_live(each)]
        for batch in tens([each for each in live if self._clock() - each.confirmed_s >= third_s]):
            asked_s = self._clock()
            try:
                failed = self._calls.set_visibility(batch, self._visibility_timeout_s)
            except Exception as error:  # noqa: BLE001 - which leases have ended is told all the same
                unreached = error
                break
            for number, delivery in enumerate(batch):
                if number not in failed:
                    delivery.confirmed_s = asked_s
                elif failed[number] in GONE:
                    lost.append(delivery)
        lost += [each for each in deliveries if not self._is_live(each) and each not in lost]
        if unreached is not None and not lost:
            raise unreached
        return lost

    def take_over(self) -> int:
        """Return 0: SQS itself gives a dead worker's messages to others."""
        return 0

    def waiting(self) -> int:
        """Return how many the last poll asked for, if it brought so many: as many more may wait. No IO."""
        return self._waiting

    def backlog(self) -> Sequence[Waiting]:
        """Return about how many messages can be received. Blocks for a call."""
        return [Waiting(self._queue, self._calls.depth())]

    def disconnected(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return none: a lease on SQS knows no connection."""
        return []

    def close(self) -> None:
        """Hand back what arrives last and send what is buffered. Blocks for a long poll and some seconds."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._fetches, max(self._fetched_by_s - self._clock(), 0.0))
        self.release()
        self._deletes.close()

    @contextmanager
    def _fetching(self, until_s: float) -> Iterator[None]:
        with self._idle:
            self._fetches += 1
            self._fetched_by_s = until_s
        try:
            yield
        finally:
            with self._idle:
                self._fetches -= 1
                self._idle.notify_all()

    def _delivery(self, raw: RawMessage, taken_s: float, *, message: Any) -> Delivery:
        return Delivery(
            tag=raw["ReceiptHandle"],
            queue=self._queue,
            number=int(raw["Attributes"]["ApproximateReceiveCount"]) + earlier_deliveries(raw),
            confirmed_s=taken_s,
            message=message,
            redelivered=DELIVERIES_HEADER in raw.get("MessageAttributes", {}),
            receipt=raw,
            payload_bytes=len(raw["Body"]),
        )

    def _is_live(self, delivery: Delivery) -> bool:
        return self._clock() < delivery.confirmed_s + self._visibility_timeout_s

    def _delete(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Delete up to ten and return those to try again."""
        live = [delivery for delivery in deliveries if self._is_live(delivery)]
        failed = self._calls.delete(live)
        gone = len(deliveries) - len(live) + sum(code in GONE for code in failed.values())
        if gone:
            log.warning("lease_lost number=%d at=delete", gone)
        return [live[number] for number, code in failed.items() if code not in GONE]
