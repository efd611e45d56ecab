"""Commands of many tasks in one round trip to Redis."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: Requests of one round trip: its replies stay small, and nobody waits long for another's.
BATCH_MAX = 100
#: Seconds after which a connection may have ended unnoticed, and the pool looks before it is used again.
FRESH_S = 1.0

Command = tuple[Any, ...]
_MULTI, _EXEC = pack_command(("MULTI",)), pack_command(("EXEC",))


class RedisBatches:
    """Sends what its callers ask for at the same time in one pipeline.

    Whatever comes while one round trip is on its way goes with the next, so the
    batches grow with the load and a lone request waits for nobody. One greenlet
    sends them all: a caller that is killed leaves nothing half-sent behind. It is
    for gevent, where a round trip of each task's own costs ten times the CPU, and
    for the greenlets of one thread. ``client`` makes the ``redis.Redis``, at the
    first request; its socket timeouts bound a round trip.
    """

    def __init__(self, *, client: Callable[[], Any], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._line = _Line(client=client, monotonic=monotonic)
        from gevent.hub import Waiter

        self._waiter = Waiter
        self._requests: deque[_Request] = deque()
        #: What the sender waits on while there is nothing to send.
        self._idle: Any = None
        self._started = False

    def run(self, *commands: Command) -> list[Any]:
        """Return the replies to commands; several are a transaction: all are done, or none is.

        Blocks for the round trip that is on its way and for one more, under a load of
        more than ``BATCH_MAX`` for a few; when the server is silent, for two timeouts.
        Raises what redis-py raises: the first error among the replies, or why there is
        none.
        """
        request = _Request(commands, self._waiter())
        self._requests.append(request)
        if not self._started:
            self._start()
        elif self._idle is not None:
            _wake(self._idle)
            self._idle = None
        return request.wait()

    def _start(self) -> None:
        from gevent import spawn

        self._started = True
        spawn(self._serve)

    def _serve(self) -> None:
        while True:
            if not self._requests:
                batch = request = None  # they hold what was sent, and it may be idle for long
                self._idle = self._waiter()
                self._idle.get()
            batch = [request for request in self._waiting(BATCH_MAX) if not request.dropped]
            try:
                replies = self._line.ask(batch) if batch else []
            except BaseException as error:  # noqa: BLE001 - the callers', whatever it is
                if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
                    # Who came during it would wait for a timeout of its own, and the next for both.
                    batch += self._waiting(len(self._requests))
                for request in batch:
                    request.fail(error)
            else:
                for request in batch:
                    request.answer(replies[: request.replies])
                    del replies[: request.replies]

    def _waiting(self, most: int) -> list[_Request]:
        return [self._requests.popleft() for _ in range(min(most, len(self._requests)))]


class _Line:
    """A connection of the client's pool, kept: a pipeline of redis-py's costs more than what goes through it.

    Each lends a connection anew, which is looked at, and has each reply looked at by name.
    """

    def __init__(self, *, client: Callable[[], Any], monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._pool: Any = None
        self._connection: Any = None
        self._used_s = 0.0

    def ask(self, requests: Sequence[_Request]) -> list[Any]:
        """Return the replies to all commands, errors among them. Raises why there is none."""
        if self._connection is None or self._monotonic() - self._used_s > FRESH_S:
            self._renew()
        try:
            self._connection.send_packed_command([b"".join([request.packed for request in requests])])
            replies = [self._reply() for request in requests for _ in range(request.replies)]
        except BaseException:
            self._give_back()
            raise
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            self._give_back()  # a failover: it leads to who was the primary
        self._used_s = self._monotonic()
        return replies

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error.with_traceback(None)  # which would hold all requests of the round trip, and they it

    def _renew(self) -> None:
        if self._connection is not None:
            self._pool.release(self._connection)
            self._connection = None
        self._pool = self._client().connection_pool
        self._connection = self._pool.get_connection()

    def _give_back(self) -> None:
        self._connection.disconnect()
        self._pool.release(self._connection)
        self._connection = None


class _Request:
    """Commands, and what became of them."""

    __slots__ = ("_answered", "_error", "_replies", "dropped", "packed", "replies")

    def __init__(self, commands: Sequence[Command], waiter: Any) -> None:
        # In the caller: what can't be encoded is its error, and no other's.
        packed = b"".join(map(pack_command, commands))
        one = len(commands) == 1
        self.packed = packed if one else _MULTI + packed + _EXEC
        #: How many replies there will be.
        self.replies = 1 if one else len(commands) + 2
        #: Its caller was killed: somebody else may have written what this would write over.
        self.dropped = False
        self._answered = waiter  # the cheapest thing that can be waited for: a lock costs four times as much
        self._replies: list[Any] = []
        self._error: BaseException | None = None

    def wait(self) -> list[Any]:
        """Return the replies, or raise."""
        try:
            self._answered.get()
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
        _wake(self._answered)

    def fail(self, error: BaseException) -> None:
        """Let the caller raise."""
        self._error = error
        _wake(self._answered)


def _wake(waiter: Any) -> None:
    """Let the loop wake who waits, unless it was killed meanwhile."""
    waiter.hub.loop.run_callback(waiter.switch, None)


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            # Itself would hold the callers' frames, and they it, until garbage is collected.
            raise copy.copy(reply)
