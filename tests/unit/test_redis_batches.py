"""Commands of many callers in one round trip."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from forwarder.redis_batches import BATCH_MAX, RedisBatches


class FakeRedis:
    """Echoes every command; ``go`` lets a round trip end, ``sent`` has the commands of each."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[Any, ...]]] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None
        self._commands: list[tuple[Any, ...]] = []

    def pipeline(self, *, transaction: bool) -> FakeRedis:
        assert not transaction
        return self

    def __enter__(self) -> FakeRedis:
        self._commands = []
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        self.sent.append(self._commands)
        assert self.go.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return [ResponseError("no") if command == ("BAD",) else command for command in self._commands]


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
        ("SET", "a"),
        ("PUBLISH", "b"),
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
    assert first.result(10) == [("GET", "first")]
    assert [each.result(10) for each in rest] == [[("GET", number), ("ACK", number)] for number in range(20)]
    assert [len(commands) for commands in server.sent] == [1, 40]


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
    assert good.result(10) == [("GET", 1)]
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
    assert batches.run(("GET", "later")) == [("GET", "later")]
