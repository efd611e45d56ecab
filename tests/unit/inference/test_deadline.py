"""The socket with one deadline, over a socket pair and a clock that the test moves."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from forwarder.inference.deadline import DeadlineSocket


class Pair:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.now = 100.0
        self.sock = DeadlineSocket(self.near, lambda: self.now)
        self.sock.arm(deadline=110.0, silence_s=4.0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.near.close()
    made.far.close()


def test_each_read_gets_the_read_timeout_or_what_is_left_of_the_total(pair: Pair) -> None:
    pair.far.sendall(b"abc")
    reader = pair.sock.makefile("rb")
    assert reader.read(1) == b"a"
    assert pair.near.gettimeout() == 4.0
    pair.far.sendall(b"d")
    pair.now = 109.5
    assert reader.read(3) == b"bcd"
    assert pair.near.gettimeout() == 0.5


def test_nothing_is_read_or_sent_past_the_deadline(pair: Pair) -> None:
    pair.now = 110.0
    pair.far.sendall(b"abc")
    with pytest.raises(TimeoutError):
        pair.sock.makefile("rb").read(1)
    with pytest.raises(TimeoutError):
        pair.sock.sendall(b"abc")


def test_a_close_waits_for_the_reader(pair: Pair) -> None:
    pair.far.sendall(b"abc")
    reader = pair.sock.makefile("rb")
    pair.sock.close()
    assert reader.read(3) == b"abc"
    assert pair.near.fileno() >= 0
    reader.close()
    reader.close()
    assert pair.near.fileno() == -1


def test_an_idle_connection_is_stale_when_anything_arrives_on_it(pair: Pair) -> None:
    assert not pair.sock.stale()
    pair.far.sendall(b"x")
    assert pair.sock.stale()


def test_an_idle_connection_is_stale_when_the_other_side_closed_it(pair: Pair) -> None:
    pair.far.close()
    assert pair.sock.stale()


def test_only_the_mode_that_http_client_uses_is_served(pair: Pair) -> None:
    with pytest.raises(ValueError, match="rb"):
        pair.sock.makefile("wb")
