"""A server that refuses: asked again after a while, named once, and not taken for a good connection."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from forwarder.brokers.redis.refusal import ASK_AGAIN_S, LASTS_S, Refusal, require_writes
from forwarder.brokers.redis.transport import LeasedChannel


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refused(refusal: Refusal, clock: Clock, times: int) -> None:
    for _ in range(times):
        refusal.note(OutOfMemoryError("command not allowed"))
        clock.now_s += ASK_AGAIN_S


def test_a_server_that_refused_is_asked_again_after_a_while() -> None:
    clock = Clock()
    refusal = Refusal(clock)
    assert not refusal.waits
    refusal.note(ResponseError("MISCONF"))
    assert refusal.waits
    clock.now_s += ASK_AGAIN_S
    assert not refusal.waits


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    refusal = Refusal(clock)
    refused(refusal, clock, 20)
    refusal.end()
    refusal.end()
    assert [record.message.split()[0] for record in caplog.records] == [
        "broker_refuses",
        "broker_accepts_again",
    ]
    refused(refusal, clock, 2)
    assert caplog.text.count("broker_refuses") == 2
    clock.now_s += LASTS_S
    refused(refusal, clock, 1)
    assert caplog.text.count("broker_refuses") == 3, "busy in between, it never waited for a message"


def channel_that_reads(error: Exception, clock: Clock, *, waiting: bool = False) -> Any:
    """Return a channel whose next reply is an error: to a take, or to a wait before a take of "one"."""

    def parse_response(connection: Any, command: str) -> Any:
        if waiting and command == "EVALSHA":
            return ["one"]
        raise error

    channel: Any = LeasedChannel.__new__(LeasedChannel)
    connection = SimpleNamespace(disconnect=lambda: None)
    channel.client = SimpleNamespace(connection=connection, parse_response=parse_response)
    channel.refusal = Refusal(clock)
    channel._closing = True
    channel.connection_errors = (OSError,)
    channel._flush_brpop_reauth = lambda: None
    channel._in_poll, channel._wait_next, channel._waiting, channel._pending = connection, True, waiting, None
    leases = SimpleNamespace(end_take=lambda take, reply: [SimpleNamespace(queue=each) for each in reply])
    channel.book = SimpleNamespace(leases=leases)
    channel._queue_cycle = SimpleNamespace(rotate=lambda queue: None)
    return channel


def test_a_refused_take_brings_nothing_and_leaves_the_connection_as_it_is() -> None:
    channel = channel_that_reads(OutOfMemoryError("command not allowed"), Clock())
    assert channel._read_reply() == []
    assert channel._in_poll is None
    assert channel.refusal.waits
    assert channel._wait_next is False, "a take may free the memory that a wait lacks"


def test_the_take_behind_a_refused_wait_is_read_and_what_it_brings_is_not_lost() -> None:
    channel = channel_that_reads(OutOfMemoryError("command not allowed"), Clock(), waiting=True)
    assert [one.queue for one in channel._read_reply()] == ["one"]
    assert channel.refusal.waits
    assert channel._wait_next is False


def test_a_replica_is_a_lost_connection_because_the_primary_is_elsewhere() -> None:
    channel = channel_that_reads(ReadOnlyError("You can't write"), Clock())
    with pytest.raises(ConnectionError):
        channel._read_reply()


def test_kombus_upkeep_is_neither_done_nor_logged_each_second_while_the_server_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[float] = []
    clock = Clock()

    def refuse(_: Any) -> None:
        tries.append(clock.now_s)
        raise OutOfMemoryError

    monkeypatch.setattr("kombu.transport.redis.Channel.maybe_refresh_binding_expiry", refuse)
    channel = channel_that_reads(OutOfMemoryError(), clock)
    channel.maybe_refresh_binding_expiry()
    channel.maybe_refresh_binding_expiry()
    assert len(tries) == 1
    clock.now_s += ASK_AGAIN_S
    channel.maybe_refresh_binding_expiry()
    assert len(tries) == 2


def test_a_server_that_refuses_writes_is_no_connection() -> None:
    class Full:
        def zadd(self, key: str, members: Any, *, xx: bool) -> int:
            raise OutOfMemoryError("command not allowed")

    with pytest.raises(ConnectionError, match="OutOfMemoryError"):
        require_writes(Full())


OUT_OF_MEMORY = ResponseError("OOM command not allowed")


@pytest.mark.parametrize(
    ("before", "wait", "take", "served"),
    [
        (True, OUT_OF_MEMORY, None, False),
        (True, OUT_OF_MEMORY, [b"one"], False),
        (True, None, OUT_OF_MEMORY, False),
        (False, None, None, True),
        (False, "no wait", [b"one"], True),
        (False, "no wait", None, False),  # which a server without memory answers, too
    ],
)
def test_a_server_that_refuses_counts_as_away_until_it_takes_a_write_or_hands_out_a_message(
    before: bool, wait: object, take: object, served: bool
) -> None:
    replies = [take] if wait == "no wait" else [wait, take]

    def parse(_connection: object, _command: str) -> object:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    channel: Any = LeasedChannel.__new__(LeasedChannel)
    taken = [SimpleNamespace(queue="q") for _ in (take if isinstance(take, list) else [])]
    leases = SimpleNamespace(end_take=lambda *_: taken)
    channel.book = SimpleNamespace(answered=before, leases=leases)
    channel.client = SimpleNamespace(connection=None, parse_response=parse)
    channel.refusal = Refusal(lambda: 0.0)
    channel.connection_errors = (ConnectionError,)
    channel._queue_cycle = SimpleNamespace(rotate=lambda queue: None)
    channel._flush_brpop_reauth = lambda: None
    channel._waiting, channel._pending = wait != "no wait", None
    channel._read_reply()
    assert channel.book.answered is served
