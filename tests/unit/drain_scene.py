"""A drain with a clock and a lease book of its own, and everything around it made of lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from celery.worker import state

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.drain import Drain


class Clock:
    """Time that passes only where somebody waits; ``at`` says what happens when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def at(self, moment_s: float, happens: Callable[[], None]) -> None:
        self._due.append((moment_s, happens))

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for moment_s, happens in list(self._due):
            if moment_s <= self.now_s:
                self._due.remove((moment_s, happens))
                happens()


class Book(LeaseBook):
    """A real book whose waiting is the clock's."""

    def __init__(self, clock: Clock, story: list[str]) -> None:
        super().__init__(lambda: self)  # type: ignore[arg-type,return-value]
        self._clock = clock
        self.story = story

    def receive(self, message: Any) -> Delivery:
        return Delivery(
            tag=message, queue="q", number=1, confirmed_s=0.0, message=SimpleNamespace(headers={})
        )

    def hand_back(self, deliveries: Any) -> Any:
        if deliveries and not hasattr(self, "_inside"):
            self._inside = True
            try:
                super().hand_back(deliveries)
            finally:
                del self._inside
        else:
            self.story.extend(f"handed back {delivery.tag}" for delivery in deliveries)
        return []

    def wait_empty(self, timeout_s: float) -> bool:
        if len(self):
            self._clock.sleep(timeout_s)
        return not len(self)

    def finish(self, delivery: Delivery) -> Callable[[], None]:
        return lambda: self.story.append("finished") if self.lose(delivery) else None


class Scene:
    """A drain with everything around it made of lists."""

    hostname = "here"

    def __init__(self, *, timeout_s: float = 30.0) -> None:
        self.held: list[Delivery] = []
        self.story: list[str] = []
        self.armed: list[float] = []
        self.hangs = False
        self.clock = Clock()
        self.book = Book(self.clock, self.story)
        self.drain = Drain(
            book=self.book,
            timeout_s=timeout_s,
            close=lambda: self.story.append("closed"),
            watch=self.armed.append,
            leave=lambda code: self.story.append(f"left {code}"),
            monotonic=lambda: self.clock.now_s,
            sleep=self.clock.sleep,
            done_within=self.done_within,
        )

    def done_within(self, work: Callable[[], None], seconds: float) -> bool:
        if self.hangs:
            self.clock.sleep(seconds)
            return False
        work()
        return True

    def abandon(self, delivery: Delivery) -> None:
        note = f"abandoned {delivery.tag}"
        if note not in self.story:  # the second time does nothing
            self.story.append(note)

    def stop(self, **how: Any) -> None:
        self.drain.begin(**how)
        self.drain.run(self)


@contextmanager
def drain_scene() -> Iterator[Scene]:
    """Make a scene; afterwards forget that Celery was told to stop."""
    made = Scene()
    yield made
    state.should_stop = None
    for end in (made.drain._bell, made.drain._push):
        end.close()
