"""Commands of many callers in one round trip."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent
import hiredis
import pytest
from gevent.lock import Semaphore
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from forwarder.redis_batches import BATCH_MAX, FRESH_S, RedisBatches, _Request


class FakeRedis:
    """A client, its pool and its connection: echoes every command.

    ``let`` lets round trips end, ``sent`` has the commands of each, ``calls`` what was asked of the pool.
    """

    def __init__(self) -> None:
        self.sent: list[list[tuple[bytes, ...]]] = []
        self.calls: list[str] = []
        self._go = Semaphore(0)
        self.error: Exception | None = None
        self._replies: deque[Any] = deque()

    def let(self, number: int) -> None:
        for _ in range(number):
            self._go.release()

    @property
    def connection_pool(self) -> FakeRedis:
        return self

    def get_connection(self) -> FakeRedis:
        self.calls.append("get")
        return self

    def release(self, connection: FakeRedis) -> None:
        self.calls.append("release")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def send_packed_command(self, packed: Sequence[bytes]) -> None:
        reader = hiredis.Reader()
        for piece in packed:
            reader.feed(piece)
        commands = [tuple(each) for each in iter(reader.gets, False)]
        self.sent.append(commands)
        assert self._go.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        done: list[Any] = []
        for command in commands:
            done.append(REFUSALS.get(command, command))
            if command == (b"EXEC",):
                begun = len(done) - 1 - done[::-1].index((b"MULTI",))
                done[-1] = done[begun + 1 : -1]
        self._replies = deque(done)

    def read_response(self) -> Any:
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise copy.copy(reply)
        return reply


REFUSALS: dict[tuple[bytes, ...], Exception] = {
    (b"BAD",): ResponseError("no"),
    (b"WRITE",): ReadOnlyError("a replica"),
}


@pytest.fixture
def server() -> FakeRedis:
    return FakeRedis()


class Callers:
    """Greenlets that ask; ``result`` and ``exception`` of each wait for its end."""

    def __init__(self) -> None:
        self.all: list[gevent.Greenlet] = []

    def submit(self, call: Callable[..., Any], *args: Any) -> Asking:
        greenlet = gevent.Greenlet(_outcome, call, args)
        self.all.append(greenlet)
        greenlet.start()
        return Asking(greenlet)


class Asking:
    def __init__(self, greenlet: gevent.Greenlet) -> None:
        self.greenlet = greenlet

    def result(self, timeout_s: float) -> Any:
        value, error = self.greenlet.get(timeout=timeout_s)
        if error is not None:
            raise error
        return value

    def exception(self, timeout_s: float) -> Any:
        return self.greenlet.get(timeout=timeout_s)[1]


def _outcome(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return call(*args), None
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return None, error


@pytest.fixture
def callers() -> Iterator[Callers]:
    made = Callers()
    yield made
    gevent.killall(made.all)


def waiting(batches: RedisBatches) -> int:
    return len(batches._requests)


def until(probe: Callable[[], bool]) -> None:
    for _ in range(1000):
        if probe():
            return
        gevent.sleep(0)
    raise AssertionError


def test_a_lone_request_is_sent_at_once_and_gets_its_replies(server: FakeRedis) -> None:
    server.let(1)
    assert RedisBatches(client=lambda: server).run(("SET", "a"), ("PUBLISH", "b")) == [
        (b"SET", b"a"),
        (b"PUBLISH", b"b"),
    ]


def test_what_comes_during_a_round_trip_goes_with_the_next_and_nobody_gets_anothers_reply(
    server: FakeRedis, callers: Callers
) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number), ("ACK", number)) for number in range(20)]
    until(lambda: waiting(batches) == 20)
    server.let(2)
    assert first.result(10) == [(b"GET", b"first")]
    assert [each.result(10) for each in rest] == [
        [(b"GET", b"%d" % number), (b"ACK", b"%d" % number)] for number in range(20)
    ]
    assert [len(commands) for commands in server.sent] == [1, 20 * 4]  # each a MULTI and EXEC of its own


def test_of_several_commands_all_are_done_or_none(server: FakeRedis) -> None:
    server.let(1)
    with pytest.raises(ResponseError):
        RedisBatches(client=lambda: server).run(("BAD",), ("PUBLISH", "b"))
    assert server.sent == [[(b"MULTI",), (b"BAD",), (b"PUBLISH", b"b"), (b"EXEC",)]]


def test_what_can_not_be_encoded_is_its_callers_error_alone(server: FakeRedis) -> None:
    server.let(1)
    batches = RedisBatches(client=lambda: server)
    with pytest.raises(UnicodeEncodeError):
        batches.run(("GET", "\ud800"))
    assert batches.run(("GET", "a")) == [(b"GET", b"a")]


def test_what_a_killed_caller_asked_for_is_not_sent(server: FakeRedis, callers: Callers) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("SET", name)) for name in ("killed", "alive")]
    until(lambda: waiting(batches) == 2)
    rest[0].greenlet.kill()
    server.let(2)
    first.result(10)
    assert rest[1].result(10) == [(b"SET", b"alive")]
    assert server.sent[1] == [(b"SET", b"alive")]


def test_who_was_killed_before_its_answer_came_is_not_woken_by_it_later(
    server: FakeRedis, callers: Callers
) -> None:
    batches, story = RedisBatches(client=lambda: server), []

    def ask() -> None:
        try:
            batches.run(("GET", "a"))
        finally:
            gevent.sleep(0.005)  # cleaning up: an answer that woke it would cut this short
            story.append(len(server.calls))

    asking = gevent.spawn(ask)
    until(lambda: len(server.sent) == 1)
    asking.kill(block=False)
    server.let(2)
    assert batches.run(("GET", "b")) == [(b"GET", b"b")]
    assert story == []
    asking.join(10)
    assert story != []


def test_who_comes_while_the_server_is_silent_waits_for_no_timeout_of_its_own(
    server: FakeRedis, callers: Callers
) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number)) for number in range(BATCH_MAX + 5)]
    until(lambda: waiting(batches) == BATCH_MAX + 5)
    server.error = RedisTimeoutError("silent")
    server.let(1)
    assert {str(each.exception(10)) for each in (first, *rest)} == {"silent"}
    assert len(server.sent) == 1


def test_a_batch_is_bounded(server: FakeRedis, callers: Callers) -> None:
    batches = RedisBatches(client=lambda: server)
    callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number)) for number in range(BATCH_MAX + 5)]
    until(lambda: waiting(batches) == BATCH_MAX + 5)
    server.let(3)
    for each in rest:
        each.result(10)
    assert [len(commands) for commands in server.sent] == [1, BATCH_MAX, 5]


def test_a_refused_command_is_its_callers_error_alone(server: FakeRedis, callers: Callers) -> None:
    batches = RedisBatches(client=lambda: server)
    callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    bad, good = callers.submit(batches.run, ("BAD",)), callers.submit(batches.run, ("GET", 1))
    until(lambda: waiting(batches) == 2)
    server.let(2)
    assert good.result(10) == [(b"GET", b"1")]
    with pytest.raises(ResponseError):
        bad.result(10)


class Body:
    """What a caller has in a local variable while it asks."""


@pytest.mark.parametrize("command", [("BAD",), ("GET", "x")])
def test_neither_an_error_nor_an_idle_connection_holds_what_a_request_was_about(
    command: tuple[str, ...], server: FakeRedis
) -> None:
    """An error in a circle held a task's body until garbage was collected, which an idle worker does late."""
    batches = RedisBatches(client=lambda: server)
    held: list[weakref.ref[Body]] = []

    def ask() -> None:
        body = Body()
        held.append(weakref.ref(body))
        with contextlib.suppress(ResponseError):
            batches.run(command)

    def requests() -> int:
        return sum(type(each) is _Request for each in gc.get_objects())

    gc.collect()
    gc.disable()
    before = requests()
    try:
        server.let(1)
        ask()
        until(lambda: batches._idle is not None)
        assert held[0]() is None
        assert requests() == before
    finally:
        gc.enable()


def test_a_lost_connection_is_the_error_of_all_that_were_sent_and_the_next_go_on(
    server: FakeRedis, callers: Callers
) -> None:
    batches = RedisBatches(client=lambda: server)
    server.error = RedisConnectionError("gone")
    lost = [callers.submit(batches.run, ("GET", number)) for number in range(3)]
    server.let(3)
    errors = [each.exception(10) for each in lost]
    assert [str(error) for error in errors] == ["gone"] * 3
    assert len({id(error) for error in errors}) == 3  # each has a traceback of its own
    server.error = None
    server.let(1)
    assert batches.run(("GET", "later")) == [(b"GET", b"later")]


def test_a_connection_is_kept_and_looked_at_when_it_was_long_unused(server: FakeRedis) -> None:
    now = [0.0]
    batches = RedisBatches(client=lambda: server, monotonic=lambda: now[0])
    server.let(3)
    for step_s in (0.0, FRESH_S, FRESH_S + 0.1):
        now[0] += step_s
        batches.run(("GET", "a"))
    assert server.calls == ["get", "release", "get"]


def test_a_connection_that_failed_or_leads_to_a_replica_is_not_used_again(server: FakeRedis) -> None:
    batches = RedisBatches(client=lambda: server)
    server.let(3)
    with pytest.raises(ReadOnlyError):
        batches.run(("WRITE",))
    server.error = RedisTimeoutError("silent")
    with pytest.raises(RedisTimeoutError):
        batches.run(("GET", "a"))
    server.error = None
    batches.run(("GET", "a"))
    assert server.calls == ["get", "disconnect", "release"] * 2 + ["get"]
