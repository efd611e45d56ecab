"""Redis: a transport that takes messages under a lease, in one step on the server.

kombu pops a message first and registers it as unacked afterwards, by its own
clock, in an index that all queues of a database share; what a process dies with
between the two is lost, and what runs when its channel closes is given to
others. Here the script TAKE does both, and the lease book settles (see
``docs/decisions/0008``). A connection without the transport option ``book``, a
producer's, behaves as kombu's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import Empty
from time import monotonic
from typing import Any, cast

from kombu.transport import redis
from redis.exceptions import NoScriptError, ReadOnlyError
from redis.exceptions import ResponseError as Refused

from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.redis.intake import Take, Taken
from forwarder.brokers.redis.messages import GuardedMessage, envelope_of
from forwarder.brokers.redis.qos import BookedQoS
from forwarder.brokers.redis.refusal import Refusal, require_writes
from forwarder.brokers.redis.scripts import TAKE, sha1
from forwarder.brokers.stopping import StopsAtOnce

log = logging.getLogger(__name__)

#: Seconds that the blocking loop waits for a slot before it looks at other things.
SLOT_WAIT_S = 1.0
_TAKE_SHA = sha1(TAKE)


class LeasedChannel(redis.Channel):
    """kombu's channel, which asks for messages with TAKE and waits for them with BLMOVE.

    A take that brought nothing is followed by a wait in one queue's list: what
    arrives is moved to this process's intake list, from where the take has it that
    was sent right behind the wait.
    """

    Message = GuardedMessage

    #: kombu's own, which its stubs leave out.
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _q_for_pri: Any
    _flush_brpop_reauth: Any
    QoS: Any

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        options = connection.client.transport_options
        self.book: LeaseBook | None = options.get("book")
        #: Seconds that an idle worker waits in one list; after it, it looks at all queues and priorities.
        self._wait_s: float = options.get("wait_s", 0.25)
        if self.book is not None:
            self.QoS = BookedQoS
        self._met = False
        self._script_known = True
        self._wait_next = False
        self.refusal = Refusal(monotonic)
        #: What the pending reply answers, and the queue that is waited for before it, or was last.
        self._pending: Take | None = None
        self._waiting = False
        self._waited_for = ""

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send the next take, behind a wait or not, on the polled connection (kombu: a slot is free)."""
        if self.book is None:
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or self.refusal.waits:
            return
        if not self._met:
            self._leases.meet()
            self._met = True
        commands = [self._take(queues)]
        self._waiting = self._wait_next
        if self._waiting:
            commands.insert(0, self._wait(queues[0]))
        connection = self.client.connection
        self._in_poll, self._brpop_sent_at = connection, monotonic()
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> Any:
        """Deliver what the reply brings. Raises Empty when that is nothing."""
        if self.book is None:
            return super()._brpop_read(**options)  # type: ignore[misc]
        taken = self._read_reply()
        if not taken:
            raise Empty
        self._deliver(taken)
        return True

    def _basic_cancel(self, consumer_tag: str) -> None:
        super()._basic_cancel(consumer_tag)  # type: ignore[misc]
        if not self.active_queues:
            self._end_wait()

    def close(self) -> None:
        """Close the channel; what is in flight stays in the book."""
        self._closing = True
        self._end_wait()
        super().close()

    def maybe_refresh_binding_expiry(self) -> None:
        """Do kombu's upkeep, later where the server refuses: kombu logs each try with a traceback."""
        if not self.refusal.waits:
            try:
                super().maybe_refresh_binding_expiry()  # type: ignore[misc]
            except Refused as error:
                self.refusal.note(error)

    def wait_for_slot(self, timeout_s: float | None) -> bool:
        """Block until a message may be taken, at most ``SLOT_WAIT_S``; return whether it may."""
        if self.book is None or not self.active_queues or self.qos.can_consume():
            return True
        wait_s = SLOT_WAIT_S if timeout_s is None else min(timeout_s, SLOT_WAIT_S)
        return self.book.wait_room(cast(BookedQoS, self.qos).most, wait_s)

    @property
    def _leases(self) -> Any:
        if self.book is None:
            raise RuntimeError("a producer's channel has no leases")
        return self.book.leases

    def _take(self, queues: Sequence[str]) -> list[Any]:
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        most, bytes_left = self.qos.can_consume_max_estimate(), cast(LeaseBook, self.book).bytes_left()
        self._pending, arguments = self._leases.begin_take(queues, lists, most, bytes_left)
        script = ["EVALSHA", _TAKE_SHA] if self._script_known else ["EVAL", TAKE]
        return [*script, 0, *arguments]

    def _wait(self, queue: str) -> list[Any]:
        self._queue_cycle.rotate(queue)
        self._waited_for = queue
        return ["BLMOVE", queue, self._leases.intake(queue), "RIGHT", "LEFT", self._wait_s]

    def _read_reply(self) -> list[Taken]:
        self._wait_next = False
        refused: Refused | None = None
        try:
            refused = self._read_wait()
            reply = self.client.parse_response(self.client.connection, "EVALSHA")
        except NoScriptError:  # the server was started anew
            self._script_known = False
            return []
        except ReadOnlyError as error:  # a failover: the connection leads to who was the primary
            self.client.connection.disconnect()
            raise ConnectionError("the Redis server is a replica") from error
        except Refused as error:
            refused = error
            return []
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
            if refused is not None:
                self.refusal.note(refused)
                self._served(False)
        self._script_known = True
        self._wait_next = not reply and refused is None
        taken: list[Taken] = self._leases.end_take(cast(Take, self._pending), reply)
        if taken and refused is None:
            self._served(True)
        for queue in {one.queue for one in taken}:
            self._queue_cycle.rotate(queue)
        return taken

    def _read_wait(self) -> Refused | None:
        """Read past the end of a wait; return why the server refused it. The take's reply is right behind."""
        if not self._waiting:
            return None
        try:
            self.client.parse_response(self.client.connection, "BLMOVE")
        except ReadOnlyError:
            raise
        except Refused as error:
            return error
        self.refusal.end()  # not after a take, which works on a server without memory: it frees some
        self._served(True)
        return None

    def _served(self, served: bool) -> None:
        """Note whether the server did what it was asked; while no slot is free it is asked nothing."""
        cast(LeaseBook, self.book).answered = served

    def _deliver(self, taken: list[Taken]) -> None:
        left = list(taken)
        try:
            while left:
                if left[0].queue not in self.connection._callbacks:
                    return  # cancelled since
                one = left.pop(0)
                self.connection._deliver(envelope_of(one), one.queue)
        finally:
            if left:
                self._give_back(left)

    def _end_wait(self) -> None:
        """Give back what is on its way: a reply, at most ``--redis-wait`` away, and what was waited for."""
        if self.book is None:
            return
        try:
            if self._in_poll:
                self._give_back(self._read_reply())
            if self._waited_for:
                self._leases.empty_intake(self._waited_for)
        except (*self.connection_errors, self.ResponseError) as error:
            log.warning("intake_not_returned error=%s", type(error).__name__)  # it has a deadline

    def _give_back(self, taken: list[Taken]) -> None:
        try:
            self._leases.give_back(taken)
        except (*self.connection_errors, self.ResponseError) as error:
            log.warning("intake_not_returned number=%d error=%s", len(taken), type(error).__name__)


class SlotPoller(redis.MultiChannelPoller):
    """kombu's poller, which the blocking loop (gevent) uses; a slot that gets free ends its wait.

    kombu's waits for the connection alone, on which nothing is asked for
    while every slot is taken.
    """

    _channels: set[LeasedChannel]

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for a slot, then for messages as kombu does. Raises Empty when there is none."""
        if not all(channel.wait_for_slot(timeout) for channel in list(self._channels)):
            raise Empty
        return super().get(callback, timeout)


class RedisTransport(StopsAtOnce, redis.Transport):  # type: ignore[misc]  # the stubs disagree
    """kombu's Redis transport with leases."""

    Channel = LeasedChannel

    #: kombu's own, which its stubs leave out.
    _avail_channels: list[LeasedChannel]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = SlotPoller()

    def establish_connection(self) -> Any:
        """Connect a consumer to a server that takes writes. Raises ConnectionError where it refuses them.

        Celery tries again after a pause that grows, as with a server that is away.
        On a connection that refuses them its start would fail over and over without one.
        """
        connection: Any = super().establish_connection()
        channel = self._avail_channels[-1]
        if channel.book is not None:
            try:
                require_writes(channel.client)
            except ConnectionError:
                self.close_connection(connection)
                raise
        return connection


def broker_client(connection: Any) -> Any:
    """Return a ``redis.Redis`` for the broker of a kombu connection, which must not be closed. Blocks.

    Host, credentials and TLS are kombu's reading of the broker URL; give the
    connection ``socket_timeout`` and ``max_connections`` as transport options.
    """
    with connection.channel().conn_or_acquire() as client:
        return client
