"""The socket with one deadline, over a socket pair and a clock that the test moves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from forwarder.inference.deadline import PUT_OFF_MAX_S, Deadline, DeadlineSocket


class Pair:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.now = 100.0
        self.sock = DeadlineSocket(self.near)
        self.sock.arm(deadline=Deadline(total_s=10.0, monotonic=lambda: self.now), silence_s=4.0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.near.close()
    made.far.close()


def test_each_read_gets_the_read_timeout_or_what_is_left_of_the_total(pair: Pair) -> None:
    pair.far.sendall(b"abc")
    assert pair.sock.recv(1) == b"a"
    assert pair.near.gettimeout() == 4.0
    pair.now = 109.5
    assert pair.sock.recv(3) == b"bc"
    assert pair.near.gettimeout() == 0.5


def test_what_does_not_fit_at_once_is_sent_in_pieces() -> None:
    sent: list[bytes] = []

    class Narrow:
        def settimeout(self, seconds: float) -> None:
            sent.append(b"%d s" % seconds)

        def send(self, data: memoryview) -> int:
            sent.append(bytes(data[:2]))
            return len(sent[-1])

    sock = DeadlineSocket(cast(socket.socket, Narrow()))
    sock.arm(deadline=Deadline(total_s=2.0, monotonic=lambda: 7.0), silence_s=4.0)
    assert not sock.has_sent
    sock.sendall(b"abcde")
    assert sock.has_sent
    assert sent == [b"2 s", b"ab", b"2 s", b"cd", b"2 s", b"e"]


def test_nothing_is_read_or_sent_past_the_deadline(pair: Pair) -> None:
    pair.now = 110.0
    pair.far.sendall(b"abc")
    with pytest.raises(TimeoutError):
        pair.sock.recv(1)
    with pytest.raises(TimeoutError):
        pair.sock.sendall(b"abc")


def test_a_call_is_put_off_by_what_it_waits_and_for_an_hour_in_all() -> None:
    now, told_s = [100.0], []
    deadline = Deadline(total_s=10.0, monotonic=lambda: now[0])

    def wait(within_s: float) -> None:
        told_s.append(within_s)
        now[0] += 2000.0

    deadline.put_off(wait)
    deadline.put_off(wait)
    assert deadline.left_s == 10.0
    assert told_s == [PUT_OFF_MAX_S, PUT_OFF_MAX_S - 2000.0]


def test_an_idle_connection_is_stale_when_anything_arrives_on_it(pair: Pair) -> None:
    assert not pair.sock.stale()
    pair.far.sendall(b"x")
    assert pair.sock.stale()


def test_an_idle_connection_is_stale_when_the_other_side_closed_it(pair: Pair) -> None:
    pair.far.close()
    assert pair.sock.stale()
