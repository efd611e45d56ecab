"""The reader of answers: what llhttp makes of the bytes, and what is made of that here."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.forwarding.errors import (
    ForwarderError,
    InferenceUnreachable,
    InvalidResponse,
    ResponseTooLarge,
)
from forwarder.inference.answers import FRAMING_BYTES_MAX, AnswerReader

LIMIT = 1000
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 2\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
#: Whole, with the body {}, and the connection stays.
KEPT = {
    "length": LENGTH + b"\r\n{}",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}",
    "chunks": CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "chunk extension": CHUNKED + b"2;a=b\r\n{}\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"2\r\n{}\r\n0\r\nStatus: 500\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + LENGTH + b"\r\n{}",
    "interim with length": b"HTTP/1.1 100 Go\r\nContent-Length: 5\r\n\r\n" + LENGTH + b"\r\n{}",
    "two interims": b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 102 On\r\n\r\n" + LENGTH + b"\r\n{}",
    "HTTP/1.0 kept": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
}
CLOSED = {
    "announced": LENGTH + b"Connection: close\r\n\r\n{}",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no length": OK + b"\r\n{}",
}
NOT_HTTP = {
    "text": b"hello there\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\n{}",
    "status without end": b"HTTP/1.1 050 Odd\r\n\r\n{}",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "version": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "lone line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "two lengths": LENGTH + b"Content-Length: 3\r\n\r\n{}",
    "length and chunks": LENGTH + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "signed length": OK + b"Content-Length: +2\r\n\r\n{}",
    "endless length": OK + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "no length in it": OK + b"Content-Length: \r\n\r\n{}",
    "space in a name": OK + b"Content-Length : 2\r\n\r\n{}",
    "NUL": OK + b"X: a\0b\r\n\r\n",
    "negative chunk": CHUNKED + b"-2\r\n{}\r\n",
    "chunk longer than it says": CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",
    "other protocol": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
    "headers without end": OK + b"X: " + b"a" * FRAMING_BYTES_MAX,
    "trailers without end": CHUNKED + b"1\r\n{\r\n0\r\nX: " + b"a" * 2 * FRAMING_BYTES_MAX,
    "interims without end": b"HTTP/1.1 102 On\r\n\r\n" * (FRAMING_BYTES_MAX // 15),
}
BROKEN_OFF = {
    "status": b"HTTP/1.1 2",
    "headers": OK + b"Content-Le",
    "body": OK + b"Content-Length: 20\r\n\r\n{}",
    "chunk": CHUNKED + b"10\r\nabc",
    "last chunk": CHUNKED + b"2\r\n{}\r\n",
    "interim": b"HTTP/1.1 103 Early\r\n\r\n",
}


def read(raw: bytes, *, step: int = 65536) -> AnswerReader:
    reader = AnswerReader(body_bytes_max=LIMIT)
    try:
        for start in range(0, len(raw), step):
            reader.feed(raw[start : start + step])
            if reader.whole:
                return reader
        reader.end()
        return reader
    finally:
        reader.close()


def cases(table: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("raw", table.values(), ids=table)


@pytest.mark.parametrize("step", [1, 7, 65536])
@cases(KEPT)
def test_an_answer_that_says_where_it_ends_leaves_the_connection_to_the_next(raw: bytes, step: int) -> None:
    reader = read(raw, step=step)
    assert (reader.status, reader.body, reader.reusable) == (200, b"{}", True)
    assert not {"link", "status"} & reader.headers.keys(), "of an interim answer or a trailer"


@pytest.mark.parametrize("step", [1, 65536])
@cases(CLOSED)
def test_an_answer_that_ends_with_the_connection_is_its_last(raw: bytes, step: int) -> None:
    reader = read(raw, step=step)
    assert (reader.status, reader.body, reader.reusable) == (200, b"{}", False)


@pytest.mark.parametrize("status", [b"204 Nothing", b"304 Not Modified"])
def test_an_answer_without_a_body_is_whole_with_its_head(status: bytes) -> None:
    reader = read(b"HTTP/1.1 " + status + b"\r\nContent-Length: 20\r\n\r\n")
    assert (reader.status, reader.body, reader.reusable) == (int(status[:3]), b"", True)


@cases(
    {
        "junk": b"junk",
        "one letter": b"H",
        "half an answer": b"HTTP/1.1 5",
        "an answer": b"HTTP/1.1 500 No\r\nX: 2\r\nContent-Length: 3\r\n\r\nbad",
        "an interim answer": b"HTTP/1.1 100 Go\r\n\r\n",
    }
)
def test_what_comes_with_an_answer_and_is_not_part_of_it_is_nobodys(raw: bytes) -> None:
    reader = read(LENGTH + b"X: 1\r\n\r\n{}" + raw)
    assert (reader.status, reader.body, reader.reusable) == (200, b"{}", False)
    assert reader.headers == {"content-length": "2", "x": "1"}


@cases(NOT_HTTP)
def test_what_is_not_http_is_an_invalid_response(raw: bytes) -> None:
    with pytest.raises(InvalidResponse, match="not HTTP"):
        read(raw)


@cases(BROKEN_OFF)
def test_an_answer_that_breaks_off_is_no_answer(raw: bytes) -> None:
    with pytest.raises(InferenceUnreachable, match="broke off"):
        read(raw)


def test_a_close_without_a_word_is_told_from_half_an_answer() -> None:
    with pytest.raises(InferenceUnreachable, match="before answering"):
        read(b"")


@cases(
    {
        "announced": OK + b"Content-Length: 1001\r\n\r\n",
        "chunks": CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx",
        "no length": OK + b"\r\n" + b"x" * 1001,
    }
)
def test_a_body_past_the_bound_is_refused_as_soon_as_that_is_known(raw: bytes) -> None:
    with pytest.raises(ResponseTooLarge, match="limit of 1000"):
        AnswerReader(body_bytes_max=LIMIT).feed(raw)


def test_a_body_of_just_the_bound_is_taken() -> None:
    assert len(read(OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000).body) == LIMIT


def test_headers_have_lower_case_names_and_the_last_of_a_name_counts() -> None:
    reader = read(LENGTH + b"Retry-After: 1\r\nRETRY-AFTER:  7 \r\nX: \xe9\r\n\r\n{}")
    assert reader.headers == {"content-length": "2", "retry-after": "7", "x": "\xe9"}


def test_what_a_signals_handler_raises_is_not_the_servers_fault() -> None:
    class Interrupted(AnswerReader):
        def on_header(self, name: bytes, value: bytes) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        Interrupted(body_bytes_max=LIMIT).feed(LENGTH + b"\r\n{}")


def test_a_closed_reader_is_freed_without_the_garbage_collector() -> None:
    reader = read(KEPT["length"])
    gone = weakref.ref(reader)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


@given(st.sampled_from(sorted({**KEPT, **CLOSED}.values())), st.data())
def test_no_damage_to_an_answer_is_more_than_an_error_of_ours(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        reader = read(bytes(damaged), step=data.draw(st.integers(1, 100)))
    except ForwarderError:
        return
    assert 100 <= reader.status <= 999
