"""The client over fake sockets: who closes the connection when a call is ended from outside, or by time."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from forwarder.forwarding.errors import Expired, InferenceTimeout
from forwarder.inference.client import COPIED_BYTES_MAX, InferenceClient

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


class Killed(BaseException):
    """What a greenlet that is killed sees: no Exception."""


class Wire:
    """One connection: what it receives piece by piece, and what raises instead."""

    def __init__(self, *pieces: Any, send: Any = None) -> None:
        self.pieces = list(pieces)
        self.send_error = send
        self.sent: list[bytes] = []
        self.timeouts: list[float] = []
        self.options: list[tuple[int, ...]] = []
        self.open = True

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)

    def send(self, data: Any) -> int:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(bytes(data))
        return len(data)

    def recv(self, bytes_max: int) -> bytes:
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return bytes(piece() if callable(piece) else piece)

    def close(self) -> None:
        self.open = False


class Bench:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        wire: Wire,
        *,
        connect: Any = None,
        url: str = "http://127.0.0.1:1/predict",
        idle_max: int = 2,
    ) -> None:
        self.now = 100.0
        self.connect_timeouts: list[float] = []

        def create_connection(address: Any, timeout: float, source: Any = None) -> Wire:
            self.connect_timeouts.append(timeout)
            if connect is not None:
                raise connect
            return wire

        monkeypatch.setattr(socket, "create_connection", create_connection)
        self.client = InferenceClient(
            url=url,
            connect_timeout_s=5.0,
            read_timeout_s=20.0,
            total_timeout_s=60.0,
            response_bytes_max=1000,
            idle_max=idle_max,
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


def test_a_request_leaves_with_its_body_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire)
    bench.client.predict(b'{"a":1}', headers={"traceparent": "00-1-2-01"})
    assert wire.sent == [
        b"POST /predict HTTP/1.1\r\n"
        b"Host: 127.0.0.1:1\r\n"
        b"Accept-Encoding: identity\r\n"
        b"Content-Type: application/json\r\n"
        b"traceparent: 00-1-2-01\r\n"
        b"Content-Length: 7\r\n"
        b"\r\n"
        b'{"a":1}'
    ]


def test_a_large_body_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire)
    body = b"x" * (COPIED_BYTES_MAX + 1)
    bench.client.predict(body, headers={})
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in wire.options, "or its last piece waits"
    head, sent = wire.sent
    assert head.endswith(b"Content-Length: 65537\r\n\r\n")
    assert sent == body


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://model/v1/predict?a=b%20c&d=e", b"/v1/predict?a=b%20c&d=e", b"model"),
        ("http://model:80", b"/", b"model"),
        ("http://[::1]:5005/predict", b"/predict", b"[::1]:5005"),
        ("http://b\u00fccher.example/\u00fc b", b"/%C3%BC%20b", b"xn--bcher-kva.example"),
    ],
)
def test_the_url_becomes_the_request_line_and_the_host(
    monkeypatch: pytest.MonkeyPatch, url: str, line: bytes, host: bytes
) -> None:
    wire = Wire(HEAD + b"1234")
    Bench(monkeypatch, wire, url=url).client.predict(b"{}", headers={})
    assert wire.sent[0].startswith(b"POST " + line + b" HTTP/1.1\r\nHost: " + host + b"\r\n")


@pytest.mark.parametrize(
    "headers", [{"a": "b\r\nc: d"}, {"a": "b\n"}, {"a b": "c"}, {"": "c"}, {"a": "\u00fc"}]
)
def test_a_header_that_http_cannot_hold_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    wire = Wire()
    bench = Bench(monkeypatch, wire)
    with pytest.raises(ValueError, match="can't hold"):
        bench.client.predict(b"{}", headers=headers)
    assert not wire.sent


def test_an_answer_in_pieces_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(HEAD[:20], HEAD[20:] + b"12", b"34")
    bench = Bench(monkeypatch, wire)
    assert bench.client.predict(b"{}", headers={}).body == b"1234"
    assert wire.open


def test_bytes_after_an_answer_close_the_connection_and_not_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(HEAD + b"1234" + HEAD)
    bench = Bench(monkeypatch, wire)
    assert bench.client.predict(b"{}", headers={}).body == b"1234"
    assert not wire.open


def test_no_more_connections_are_kept_than_there_may_be_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire, idle_max=0)
    bench.client.predict(b"{}", headers={})
    assert not wire.open
