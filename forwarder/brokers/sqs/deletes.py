"""Deleting messages ten at a time: SQS charges by the call, and a call is milliseconds of CPU."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from forwarder.aws_errors import describe
from forwarder.backoff import Backoff
from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.sqs.calls import BATCH_MAX

log = logging.getLogger(__name__)

#: How long the first of a batch waits for others: twenty tasks a second fill one. What is lost with a killed
#: process comes again, and is found done.
WINDOW_S = 0.5
#: How long ``close`` waits for what is buffered.
CLOSE_S = 3.0

BACKOFF = Backoff(base_s=0.2, max_s=5.0)

Uniform = Callable[[float, float], float]


class DeleteBuffer:
    """Collects deliveries and deletes them from a thread of its own (a greenlet under gevent).

    ``delete`` gets up to ten and returns those to try again later; when it
    raises, that is all of them. It is ``delete`` that gives one up. The thread
    starts with the first delivery, so a process that deletes nothing has none.
    """

    def __init__(
        self,
        *,
        delete: Callable[[Sequence[Delivery]], Sequence[Delivery]],
        clock: Callable[[], float],
        uniform: Uniform,
        window_s: float = WINDOW_S,
    ) -> None:
        self._delete = delete
        self._clock = clock
        self._uniform = uniform
        self._window_s = window_s
        self._changed = threading.Condition()
        self._waiting: deque[Delivery] = deque()
        self._first_s = 0.0
        self._failed = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, delivery: Delivery) -> None:
        """Have a delivery deleted soon. Does not block."""
        with self._changed:
            if not self._waiting:
                self._first_s = self._clock()
            self._waiting.append(delivery)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqs-deletes", daemon=True)
                self._thread.start()
            # Not at each one: a thread that wakes for nothing costs as much as the task's ack.
            if len(self._waiting) in (1, BATCH_MAX):
                self._changed.notify_all()

    def close(self) -> None:
        """Delete what is buffered. Blocks for at most ``CLOSE_S``."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        if self._waiting:
            log.warning("deletes_given_up number=%d", len(self._waiting))

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                again = self._delete(batch)
            except Exception as error:  # noqa: BLE001 - whatever it was, the messages must go
                log.warning("delete_failed number=%d error=%s", len(batch), describe(error))
                again = batch
            self._failed = self._failed + 1 if again else 0
            if again:
                self._put_back(again)

    def _next_batch(self) -> Sequence[Delivery]:
        """Block until a batch is due; empty once all is done and the buffer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            window_s = self._first_s + self._window_s - self._clock()
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH_MAX or self._closing, max(window_s, 0))
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            self._first_s = self._clock()
            return batch

    def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(deliveries))
            pause_s = BACKOFF.wait_s(self._failed, self._uniform)
            if self._closing:
                self._changed.wait(pause_s)
            else:
                self._changed.wait_for(lambda: self._closing, pause_s)
