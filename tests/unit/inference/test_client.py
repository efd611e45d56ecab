"""The client over fake sockets: who closes the connection when a call is ended from outside, or by time."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from forwarder.forwarding.errors import Expired, InferenceTimeout, InferenceUnreachable, ResponseTooLarge
from forwarder.forwarding.ports import StagedBody
from forwarder.inference import client
from forwarder.inference.client import COPIED_BYTES_MAX, InferenceClient
from forwarder.inference.deadline import PUT_OFF_MAX_S

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
        self.slept_s: list[float] = []
        self.connect_takes_s = 0.0
        self.held: list[int] = []

        def connect_to(host: str, port: int, timeout_s: float) -> Wire:
            self.connect_timeouts.append(timeout_s)
            self.now += self.connect_takes_s
            if connect is not None:
                raise connect
            return wire

        monkeypatch.setattr(client, "connect", connect_to)
        self.client = InferenceClient(
            url=url,
            connect_timeout_s=5.0,
            read_timeout_s=20.0,
            total_timeout_s=60.0,
            response_bytes_max=1000,
            idle_max=idle_max,
            hold=self.hold,
            monotonic=lambda: self.now,
            sleep=self.slept_s.append,
        )

    def hold(self, number: int, within_s: float) -> None:
        self.held.append(number)

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


@pytest.mark.parametrize("within_s", [None, 10.0])
def test_a_deadline_that_passes_before_anything_was_sent_is_no_timeout_of_the_server(
    monkeypatch: pytest.MonkeyPatch, within_s: float | None
) -> None:
    """Under gevent a look-up takes as long as it takes; what was never asked may be asked again."""
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire)
    bench.connect_takes_s = 61.0
    with pytest.raises(InferenceUnreachable, match="in time"):
        bench.client.predict(b"{}", headers={}, within_s=within_s)
    assert not wire.sent
    assert not wire.open


def test_a_request_that_left_in_part_may_have_been_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    bench = Bench(monkeypatch, wire)
    bench.connect_takes_s = 59.0

    def send_slowly(data: Any) -> int:
        bench.now += 1.0
        return 10

    wire.send = send_slowly  # type: ignore[method-assign]
    with pytest.raises(InferenceTimeout, match="within 60 s"):
        bench.client.predict(b"{}", headers={})


class Turn(Bench):
    """An answer that begins 59 s after its request and then waits 100 s for its turn, of a total of 60 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, never_comes: bool = False) -> None:
        self.wire = Wire()
        super().__init__(monkeypatch, self.wire)
        self.asked_s: list[float] = []
        self.wire.pieces = [self.later(59.0, HEAD + b"12"), b"34"]
        self.never_comes = never_comes

    def hold(self, number: int, within_s: float) -> None:
        if number == 2:
            self.asked_s.append(within_s)
            self.now += min(100.0, within_s)
            if self.never_comes or within_s < 100.0:
                raise TimeoutError


def test_waiting_for_memory_does_not_count_against_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Turn(monkeypatch)
    assert bench.client.predict(b"{}", headers={}).body == b"1234"
    assert bench.asked_s == [PUT_OFF_MAX_S]


def test_behind_a_wait_for_memory_the_server_has_what_was_left_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Turn(monkeypatch)
    bench.wire.pieces[1] = bench.silence(1.0)
    with pytest.raises(InferenceTimeout, match="within 60 s"):
        bench.client.predict(b"{}", headers={})
    assert bench.wire.timeouts[-1] == 1.0


def test_memory_that_never_comes_fails_the_task_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Turn(monkeypatch, never_comes=True)
    with pytest.raises(InferenceTimeout, match="no memory"):
        bench.client.predict(b"{}", headers={})
    assert not bench.wire.open


def test_waiting_for_memory_ends_with_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Turn(monkeypatch)
    with pytest.raises(Expired):
        bench.client.predict(b"{}", headers={}, within_s=80.0)
    assert bench.asked_s == [21.0]


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


def test_the_bytes_of_a_response_are_told_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, Wire(HEAD, b"12", b"34"))
    bench.client.predict(b"{}", headers={})
    assert bench.held == [0, 2, 4]


def test_a_body_in_a_file_is_sent_piece_by_piece_and_lets_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(bytes(range(256)) * 600)
    wire = Wire(HEAD + b"1234")
    bench = Bench(monkeypatch, wire)
    assert bench.client.predict(StagedBody(path=path, size_bytes=153_600), headers={}).body == b"1234"
    head, *pieces = wire.sent
    assert head.endswith(b"Content-Length: 153600\r\n\r\n")
    assert list(map(len, pieces)) == [65536, 65536, 22528]
    assert b"".join(pieces) == path.read_bytes()
    assert bench.slept_s == [0, 0, 0]


def test_a_call_whose_file_has_shrunk_is_not_left_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"12")
    wire = Wire(HEAD + b"1234")
    with pytest.raises(RuntimeError, match="shorter"):
        Bench(monkeypatch, wire).client.predict(StagedBody(path=path, size_bytes=3), headers={})
    assert not wire.open


class FakeSpool:
    """Holds what it is given; a Spool."""

    above_bytes = 10
    bytes_max = 100

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.within_s: list[float] = []

    def begin(self) -> None:
        self.pieces.clear()

    def write(self, data: bytes | bytearray, *, within_s: float) -> None:
        if within_s <= 0.0:
            raise TimeoutError
        self.pieces.append(bytes(data))
        self.within_s.append(within_s)

    def finish(self) -> StagedBody:
        return StagedBody(path=Path("staged"), size_bytes=sum(map(len, self.pieces)))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n", b"0123456789", b"abcdefghij", b"last"],
        [CHUNKED + b"a\r\n0123456789\r\n", b"a\r\nabcdefghij\r\n", b"4\r\nlast\r\n0\r\n\r\n"],
        [UNTIL_CLOSED, b"0123456789", b"abcdefghij", b"last", b""],
    ],
    ids=["length", "chunks", "until closed"],
)
def test_an_answer_too_large_for_memory_goes_to_the_spool_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    bench, spool = Bench(monkeypatch, Wire(*pieces)), FakeSpool()
    answer = bench.client.predict(b"{}", headers={}, spool=spool)
    assert spool.pieces == [b"0123456789abcdefghij", b"last"]
    assert (answer.body, answer.staged) == (b"", StagedBody(path=Path("staged"), size_bytes=24))
    assert max(bench.held) == 10, "what is on the disk is not held in memory"


def test_an_answer_with_its_last_byte_in_its_first_piece_goes_there_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire = Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n0123456789a")
    spool = FakeSpool()
    answer = Bench(monkeypatch, wire).client.predict(b"{}", headers={}, spool=spool)
    assert spool.pieces == [b"0123456789a"]
    assert answer.body == b""


def test_a_small_answer_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = FakeSpool()
    answer = Bench(monkeypatch, Wire(HEAD + b"1234")).client.predict(b"{}", headers={}, spool=spool)
    assert (answer.body, answer.staged, spool.pieces) == (b"1234", None, [])


def test_an_error_answer_stays_in_memory_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(b"HTTP/1.1 500 No\r\nContent-Length: 200\r\n\r\n" + b"x" * 200)
    spool = FakeSpool()
    answer = Bench(monkeypatch, wire).client.predict(b"{}", headers={}, spool=spool)
    assert (answer.body, answer.staged, spool.pieces) == (b"x" * 200, None, [])


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n"],
        [UNTIL_CLOSED, *[b"0123456789"] * 10, b"x"],
    ],
    ids=["announced", "grown"],
)
def test_the_spools_bound_is_kept(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    wire = Wire(*pieces)
    with pytest.raises(ResponseTooLarge, match="limit of 100"):
        Bench(monkeypatch, wire).client.predict(b"{}", headers={}, spool=FakeSpool())
    assert not wire.open


def test_a_spool_that_has_no_room_until_the_deadline_makes_the_answer_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire = Wire()
    bench, spool = Bench(monkeypatch, wire), FakeSpool()
    wire.pieces = [UNTIL_CLOSED, bench.later(15.0, b"0123456789a"), bench.later(45.0, b"b")]
    with pytest.raises(InferenceTimeout, match="within 60 s"):
        bench.client.predict(b"{}", headers={}, spool=spool)
    assert spool.within_s == [45.0]
    assert not wire.open


def test_an_answer_that_broke_off_is_forgotten_by_the_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n"
    wire = Wire(head + b"0123456789abc", b"")
    bench, spool = Bench(monkeypatch, wire), FakeSpool()
    with pytest.raises(InferenceUnreachable):
        bench.client.predict(b"{}", headers={}, spool=spool)
    wire.pieces = [head + b"x" * 24]
    bench.client.predict(b"{}", headers={}, spool=spool)
    assert spool.pieces == [b"x" * 24]
