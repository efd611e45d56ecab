"""One load test: tasks are sent, results read, and the worker looked at, until all is done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from forwarder.loadtest.figures import Sample, sampled
from forwarder.loadtest.shape import Shape
from forwarder.loadtest.target import Target
from forwarder.loadtest.traffic import Ended, ErrorCode, Read, Results, Send, Sender

#: Seconds between two rounds of reading results.
ROUND_S = 0.2


class Watcher(Protocol):
    """Who is shown each sample."""

    def update(self, sample: Sample) -> None:
        """Show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run; ``stalled`` when it ended because no result came any more."""

    samples: Sequence[Sample]
    ended: Sequence[Ended]
    sent: int
    stalled: bool


class LoadTest:
    """One run. ``payloads`` replaces the shape's; after ``stall_s`` without a result the rest is given up."""

    def __init__(
        self,
        *,
        shape: Shape,
        target: Target,
        send: Send,
        read: Read,
        error_code: ErrorCode,
        watcher: Watcher,
        payloads: Iterator[dict[str, Any]],
        source: random.Random,
        interval_s: float,
        stall_s: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shape = shape
        self._target = target
        self._results = Results(read=read, error_code=error_code)
        self._watcher = watcher
        self._interval_s = interval_s
        self._stall_s = stall_s
        self._now = now
        self._sleep = sleep
        self._sender = Sender(
            send=send,
            payloads=payloads,
            offsets_s=shape.arrival.offsets_s(shape.tasks, source),
            sent=self._results.add,
        )
        self._began_s = 0.0

    def run(self) -> Outcome:
        """Send and follow everything. Blocks until the last result, or for ``stall_s`` without one.

        Raises what sending or reading raised.
        """
        self._began_s = self._now()
        samples = [self._sample()]  # the worker at rest
        next_s = moved_s = self._began_s
        self._sender.start()
        try:
            while len(self._results.ended) < self._shape.tasks:
                if self._sender.failure is not None:
                    raise self._sender.failure
                # While tasks are still to come, a queue that is empty is no stall.
                if self._results.look() or not self._results.pending:
                    moved_s = self._now()
                if self._now() - moved_s > self._stall_s:
                    break
                if self._now() >= next_s:
                    next_s = self._now() + self._interval_s
                    samples.append(self._sample())
                self._sleep(ROUND_S)
        finally:
            self._sender.stop()
        samples.append(self._sample())
        ended = self._results.ended
        return Outcome(
            samples=samples, ended=ended, sent=self._results.sent, stalled=len(ended) < self._shape.tasks
        )

    def _sample(self) -> Sample:
        target = self._target
        sample = sampled(
            self._now() - self._began_s,
            sent=self._results.sent,
            done=len(self._results.ended),
            look=target.look(),
            in_flight=target.in_flight(),
            events=None if target.log is None else target.log.read(),
        )
        self._watcher.update(sample)
        return sample
