"""Commands of many tasks in one round trip to Redis."""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

#: Requests of one round trip: its replies stay small, and nobody waits long for another's.
BATCH_MAX = 100

Command = tuple[Any, ...]


class RedisBatches:
    """Sends what its callers ask for at the same time in one pipeline.

    Whatever comes while one round trip is on its way goes with the next, so the
    batches grow with the load and a lone request waits for nobody. One greenlet
    sends them all: a caller that is killed leaves nothing half-sent behind. It is
    for gevent, where a round trip of each task's own costs ten times the CPU;
    threads would work too. ``client`` makes the ``redis.Redis``, at the first
    request; its socket timeouts bound a round trip.
    """

    def __init__(self, *, client: Callable[[], Any]) -> None:
        self._client = client
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def run(self, *commands: Command) -> list[Any]:
        """Return the replies to commands, sent one after the other and without others between them.

        Blocks for at most two round trips. Raises what redis-py raises: the first
        error among the replies, or why there is none.
        """
        if not self._started:
            self._start()
        request = _Request(commands)
        self._requests.put(request)
        return request.wait()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                threading.Thread(target=self._serve, name="redis-batches", daemon=True).start()
                self._started = True

    def _serve(self) -> None:
        while True:
            batch = [self._requests.get()]
            time.sleep(0)  # who is about to ask, asks now
            while len(batch) < BATCH_MAX and not self._requests.empty():
                batch.append(self._requests.get())
            try:
                replies = self._send(batch)
            except BaseException as error:  # noqa: BLE001 - the callers', whatever it is
                for request in batch:
                    request.fail(error)
            else:
                for request in batch:
                    request.answer(replies[: len(request.commands)])
                    del replies[: len(request.commands)]

    def _send(self, batch: Sequence[_Request]) -> list[Any]:
        with self._client().pipeline(transaction=False) as pipeline:
            for request in batch:
                for command in request.commands:
                    pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies


class _Request:
    """Commands, and what became of them."""

    __slots__ = ("_answered", "_error", "_replies", "commands")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self._answered = threading.Lock()  # the cheapest thing that can be waited for
        self._answered.acquire()
        self._replies: list[Any] = []
        self._error: BaseException | None = None

    def wait(self) -> list[Any]:
        """Return the replies, or raise."""
        self._answered.acquire()
        if self._error is not None:
            raise copy.copy(self._error)  # of the one object all callers would share the traceback
        for reply in self._replies:
            if isinstance(reply, Exception):
                raise reply
        return self._replies

    def answer(self, replies: list[Any]) -> None:
        """Let the caller have the replies."""
        self._replies = replies
        self._answered.release()

    def fail(self, error: BaseException) -> None:
        """Let the caller raise."""
        self._error = error
        self._answered.release()
