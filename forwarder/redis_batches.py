"""Commands of many tasks in one round trip to Redis."""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

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
        """Return the replies to commands; several are a transaction: all are done, or none is.

        Blocks for the round trip that is on its way and for one more, under a load of
        more than ``BATCH_MAX`` for a few; when the server is silent, for two timeouts.
        Raises what redis-py raises: the first error among the replies, or why there is
        none.
        """
        request = _Request(commands)
        if not self._started:
            self._start()
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
            batch += self._waiting(BATCH_MAX - 1)
            batch = [request for request in batch if not request.dropped]
            try:
                replies = self._send(batch)
            except BaseException as error:  # noqa: BLE001 - the callers', whatever it is
                if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
                    # Who came during it would wait for a timeout of its own, and the next for both.
                    batch += self._waiting(self._requests.qsize())
                for request in batch:
                    request.fail(error)
            else:
                for request in batch:
                    request.answer(replies[: len(request.commands)])
                    del replies[: len(request.commands)]

    def _waiting(self, most: int) -> list[_Request]:
        found: list[_Request] = []
        while len(found) < most and not self._requests.empty():
            found.append(self._requests.get())
        return found

    def _send(self, batch: Sequence[_Request]) -> list[Any]:
        if not batch:
            return []
        with self._client().pipeline(transaction=False) as pipeline:
            for request in batch:
                for command in request.commands:
                    pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies


class _Request:
    """Commands, and what became of them."""

    __slots__ = ("_answered", "_error", "_replies", "commands", "dropped")

    def __init__(self, commands: Sequence[Command]) -> None:
        # In the caller: what can't be encoded is its error, and no other's.
        encoded = [tuple(map(_encoded, command)) for command in commands]
        self.commands = encoded if len(encoded) == 1 else [(b"MULTI",), *encoded, (b"EXEC",)]
        #: Its caller was killed: somebody else may have written what this would write over.
        self.dropped = False
        self._answered = threading.Lock()  # the cheapest thing that can be waited for
        self._answered.acquire()
        self._replies: list[Any] = []
        self._error: BaseException | None = None

    def wait(self) -> list[Any]:
        """Return the replies, or raise."""
        try:
            self._answered.acquire()
        except BaseException:
            self.dropped = True
            raise
        if self._error is not None:
            raise copy.copy(self._error)  # of the one object all callers would share the traceback
        _raise_first(self._replies)  # of a transaction that is refused: why, before EXEC's own words
        if len(self._replies) == 1:
            return self._replies
        done: list[Any] = self._replies[-1]
        _raise_first(done)
        return done

    def answer(self, replies: list[Any]) -> None:
        """Let the caller have the replies."""
        self._replies = replies
        self._answered.release()

    def fail(self, error: BaseException) -> None:
        """Let the caller raise."""
        self._error = error
        self._answered.release()


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _encoded(word: Any) -> Any:
    return word.encode() if isinstance(word, str) else word
