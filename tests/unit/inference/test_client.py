"""The client over fake sockets: who closes the connection when a call is ended from outside, or by time."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from forwarder.forwarding.errors import Expired, InferenceTimeout
from forwarder.inference.client import InferenceClient

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


class Killed(BaseException):
    """What a greenlet that is killed sees: no Exception."""


class Wire:
    """One connection: what it receives piece by piece, and what raises instead."""

    def __init__(self, *pieces: Any, send: Any = None) -> None:
        self.pieces = list(pieces)
        self.send_error = send
        self.timeouts: list[float] = []
        self.open = True

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def setsockopt(self, *_: Any) -> None:
        pass

    def send(self, data: Any) -> int:
        if self.send_error is not None:
            raise self.send_error
        return len(data)

    def recv_into(self, buffer: Any) -> int:
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        if callable(piece):
            piece = piece()
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.open = False


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, wire: Wire, *, connect: Any = None) -> None:
        self.now = 100.0
        self.connect_timeouts: list[float] = []

        def create_connection(address: Any, timeout: float, source: Any = None) -> Wire:
            self.connect_timeouts.append(timeout)
            if connect is not None:
                raise connect
            return wire

        monkeypatch.setattr(socket, "create_connection", create_connection)
        self.client = InferenceClient(
            url="http://127.0.0.1:1/predict",
            connect_timeout_s=5.0,
            read_timeout_s=20.0,
            total_timeout_s=60.0,
            response_bytes_max=1000,
            idle_max=2,
            monotonic=lambda: self.now,
        )

    def later(self, seconds: float, piece: bytes) -> Any:
        def step() -> bytes:
            self.now += seconds
            return piece

        return step

    def silence(self, seconds: float) -> Any:
        def step() -> bytes:
            self.now += seconds
            raise TimeoutError

        return step


@pytest.mark.parametrize(
    "wire",
    [
        Wire(send=Killed()),
        Wire(Killed()),
        Wire(b"HTTP/1.1 200 OK\r\n", Killed()),
        Wire(HEAD, Killed()),
        Wire(HEAD + b"12", Killed()),
    ],
    ids=["sending", "waiting", "in the head", "before the body", "in the body"],
)
def test_a_call_that_is_killed_closes_its_connection(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    bench = Bench(monkeypatch, wire)
    with pytest.raises(Killed):
        bench.client.predict(b"{}", headers={})
    assert not wire.open
    assert "idle=0" in repr(bench.client)


def test_a_call_that_is_killed_while_it_connects_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Wire(), connect=Killed())
    with pytest.raises(Killed):
        bench.client.predict(b"{}", headers={})
    assert "idle=0" in repr(bench.client)


def test_a_call_ends_with_the_task_and_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    bench = Bench(monkeypatch, wire)
    wire.pieces = [bench.later(6.0, HEAD), bench.silence(4.0)]
    with pytest.raises(Expired, match="while it ran"):
        bench.client.predict(b"{}", headers={}, within_s=10.0)
    assert wire.timeouts[-1] == 4.0
    assert not wire.open


def test_a_total_deadline_before_the_tasks_end_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    bench = Bench(monkeypatch, wire)
    wire.pieces = [bench.silence(60.0)]
    with pytest.raises(InferenceTimeout, match="within 60 s"):
        bench.client.predict(b"{}", headers={}, within_s=61.0)


def test_silence_before_the_tasks_end_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    bench = Bench(monkeypatch, wire)
    wire.pieces = [bench.silence(20.0)]
    with pytest.raises(InferenceTimeout, match="silent for 20 s"):
        bench.client.predict(b"{}", headers={}, within_s=30.0)


@pytest.mark.parametrize(("within_s", "timeout_s"), [(None, 5.0), (30.0, 5.0), (2.0, 2.0)])
def test_connecting_takes_no_longer_than_the_task_has(
    monkeypatch: pytest.MonkeyPatch, within_s: float | None, timeout_s: float
) -> None:
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire)
    assert bench.client.predict(b"{}", headers={}, within_s=within_s).body == b"1234"
    assert bench.connect_timeouts == [timeout_s]
    assert wire.open
    bench.client.close()
    assert not wire.open
