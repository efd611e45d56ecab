"""Commands of many callers in one round trip."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hiredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from forwarder.redis_batches import BATCH_MAX, FRESH_S, RedisBatches


class FakeRedis:
    """A client, its pool and its connection: echoes every command.

    ``go`` lets a round trip end, ``sent`` has the commands of each, ``calls`` what was asked of the pool.
    """

    def __init__(self) -> None:
        self.sent: list[list[tuple[bytes, ...]]] = []
        self.calls: list[str] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None
        self._replies: deque[Any] = deque()

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
        assert self.go.acquire(timeout=10)
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
            raise reply
        return reply


REFUSALS: dict[tuple[bytes, ...], Exception] = {
    (b"BAD",): ResponseError("no"),
    (b"WRITE",): ReadOnlyError("a replica"),
}


@pytest.fixture
def server() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=BATCH_MAX + 20) as pool:
        yield pool


def waiting(batches: RedisBatches) -> int:
    return batches._requests.qsize()


def until(probe: Any) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if probe():
            return
        deadline.wait(0.005)
    raise AssertionError


def test_a_lone_request_is_sent_at_once_and_gets_its_replies(server: FakeRedis) -> None:
    server.go.release()
    assert RedisBatches(client=lambda: server).run(("SET", "a"), ("PUBLISH", "b")) == [
        (b"SET", b"a"),
        (b"PUBLISH", b"b"),
    ]


def test_what_comes_during_a_round_trip_goes_with_the_next_and_nobody_gets_anothers_reply(
    server: FakeRedis, callers: ThreadPoolExecutor
) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number), ("ACK", number)) for number in range(20)]
    until(lambda: waiting(batches) == 20)
    server.go.release(2)
    assert first.result(10) == [(b"GET", b"first")]
    assert [each.result(10) for each in rest] == [
        [(b"GET", b"%d" % number), (b"ACK", b"%d" % number)] for number in range(20)
    ]
    assert [len(commands) for commands in server.sent] == [1, 20 * 4]  # each a MULTI and EXEC of its own


def test_of_several_commands_all_are_done_or_none(server: FakeRedis) -> None:
    server.go.release()
    with pytest.raises(ResponseError):
        RedisBatches(client=lambda: server).run(("BAD",), ("PUBLISH", "b"))
    assert server.sent == [[(b"MULTI",), (b"BAD",), (b"PUBLISH", b"b"), (b"EXEC",)]]


def test_what_can_not_be_encoded_is_its_callers_error_alone(server: FakeRedis) -> None:
    server.go.release()
    batches = RedisBatches(client=lambda: server)
    with pytest.raises(UnicodeEncodeError):
        batches.run(("GET", "\ud800"))
    assert batches.run(("GET", "a")) == [(b"GET", b"a")]


def test_what_a_killed_caller_asked_for_is_not_sent(server: FakeRedis, callers: ThreadPoolExecutor) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("SET", name)) for name in ("killed", "alive")]
    until(lambda: waiting(batches) == 2)
    killed = batches._requests.get()
    killed.dropped = True
    batches._requests.put(killed)
    server.go.release(2)
    first.result(10)
    until(lambda: len(server.sent) == 2)
    assert len(server.sent[1]) == 1
    killed.fail(RedisConnectionError())  # so that the test's thread ends
    assert sorted(type(each.exception(10)).__name__ for each in rest) == ["ConnectionError", "NoneType"]


def test_who_comes_while_the_server_is_silent_waits_for_no_timeout_of_its_own(
    server: FakeRedis, callers: ThreadPoolExecutor
) -> None:
    batches = RedisBatches(client=lambda: server)
    first = callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number)) for number in range(BATCH_MAX + 5)]
    until(lambda: waiting(batches) == BATCH_MAX + 5)
    server.error = RedisTimeoutError("silent")
    server.go.release()
    assert {str(each.exception(10)) for each in (first, *rest)} == {"silent"}
    assert len(server.sent) == 1


def test_a_batch_is_bounded(server: FakeRedis, callers: ThreadPoolExecutor) -> None:
    batches = RedisBatches(client=lambda: server)
    callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    rest = [callers.submit(batches.run, ("GET", number)) for number in range(BATCH_MAX + 5)]
    until(lambda: waiting(batches) == BATCH_MAX + 5)
    server.go.release(3)
    for each in rest:
        each.result(10)
    assert [len(commands) for commands in server.sent] == [1, BATCH_MAX, 5]


def test_a_refused_command_is_its_callers_error_alone(server: FakeRedis, callers: ThreadPoolExecutor) -> None:
    batches = RedisBatches(client=lambda: server)
    callers.submit(batches.run, ("GET", "first"))
    until(lambda: len(server.sent) == 1)
    bad, good = callers.submit(batches.run, ("BAD",)), callers.submit(batches.run, ("GET", 1))
    until(lambda: waiting(batches) == 2)
    server.go.release(2)
    assert good.result(10) == [(b"GET", b"1")]
    with pytest.raises(ResponseError):
        bad.result(10)


def test_a_lost_connection_is_the_error_of_all_that_were_sent_and_the_next_go_on(
    server: FakeRedis, callers: ThreadPoolExecutor
) -> None:
    batches = RedisBatches(client=lambda: server)
    server.error = RedisConnectionError("gone")
    lost = [callers.submit(batches.run, ("GET", number)) for number in range(3)]
    server.go.release(3)
    errors = [each.exception(10) for each in lost]
    assert [str(error) for error in errors] == ["gone"] * 3
    assert len({id(error) for error in errors}) == 3  # each has a traceback of its own
    server.error = None
    server.go.release()
    assert batches.run(("GET", "later")) == [(b"GET", b"later")]


def test_a_connection_is_kept_and_looked_at_when_it_was_long_unused(server: FakeRedis) -> None:
    now = [0.0]
    batches = RedisBatches(client=lambda: server, monotonic=lambda: now[0])
    server.go.release(3)
    for step_s in (0.0, FRESH_S, FRESH_S + 0.1):
        now[0] += step_s
        batches.run(("GET", "a"))
    assert server.calls == ["get", "release", "get"]


def test_a_connection_that_failed_or_leads_to_a_replica_is_not_used_again(server: FakeRedis) -> None:
    batches = RedisBatches(client=lambda: server)
    server.go.release(3)
    with pytest.raises(ReadOnlyError):
        batches.run(("WRITE",))
    server.error = RedisTimeoutError("silent")
    with pytest.raises(RedisTimeoutError):
        batches.run(("GET", "a"))
    server.error = None
    batches.run(("GET", "a"))
    assert server.calls == ["get", "disconnect", "release"] * 2 + ["get"]
