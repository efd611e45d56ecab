"""One HTTP exchange, without a socket."""

from __future__ import annotations

import pytest

from forwarder.telemetry.exchange import HEAD_BYTES_MAX, Answer, as_json, is_whole, respond

ROUTES = {"/livez": lambda: as_json({"live": True}), "/bad": lambda: Answer(b"%d" % (1 // 0))}
END = b"\r\n\r\n"


def status(head: bytes) -> int:
    return int(respond(head, ROUTES).split(b" ")[1])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a" + END, 200),
        (b"GET /livez HTTP/1.0" + END, 200),
        (b"GET /livez?verbose=1 HTTP/1.1" + END, 200),
        (b"HEAD /livez HTTP/1.1" + END, 200),
        (b"GET / HTTP/1.1" + END, 404),
        (b"GET /livez/ HTTP/1.1" + END, 404),
        (b"POST /other HTTP/1.1" + END, 404),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 2" + END + b"{}", 405),
        (b"PRI * HTTP/2.0" + END, 400),
        (b"\x16\x03\x01\x02\x00\x01" + END, 400),
        (b"GET /liv\xff HTTP/1.1" + END, 404),
        (b"GET /livez" + END, 400),
        (b"" + END, 400),
        (b"GET /livez HTTP/1.1\r\n" + b"a" * HEAD_BYTES_MAX, 431),
        (b"GET /bad HTTP/1.1" + END, 500),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_every_request_has_its_answer(head: bytes, expected: int) -> None:
    assert status(head) == expected


def test_an_answer_says_its_length_and_that_it_is_the_last_on_its_connection() -> None:
    head, _, body = respond(b"GET /livez HTTP/1.1" + END, ROUTES).partition(END)
    assert body == b'{"live": true}\n'
    assert head.splitlines() == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: application/json",
        b"Content-Length: 15",
        b"Cache-Control: no-store",
        b"Connection: close",
    ]


def test_head_has_the_same_head_and_no_body() -> None:
    whole = respond(b"GET /livez HTTP/1.1" + END, ROUTES)
    assert respond(b"HEAD /livez HTTP/1.1" + END, ROUTES) == whole.partition(END)[0] + END


def test_a_method_that_is_not_served_is_told_which_are() -> None:
    assert b"\r\nAllow: GET, HEAD\r\n" in respond(b"DELETE /livez HTTP/1.1" + END, ROUTES)


def test_a_route_that_fails_tells_what_and_not_its_words() -> None:
    assert respond(b"GET /bad HTTP/1.1" + END, ROUTES).endswith(b"\r\n\r\nZeroDivisionError\n")


def test_a_request_is_whole_at_the_end_of_its_head_or_when_that_is_too_long() -> None:
    assert not is_whole(b"GET /livez HTTP/1.1\r\n")
    assert is_whole(b"GET /livez HTTP/1.1\r\n\r\n")
    assert is_whole(b"a" * HEAD_BYTES_MAX)
