"""One HTTP exchange: from the head of a request to the bytes of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

#: Bytes of a request's line and headers. Prometheus and kubelets send a few hundred.
HEAD_BYTES_MAX = 16 * 1024
HEAD_END = b"\r\n\r\n"
METHODS = (b"GET", b"HEAD")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Answer]


def as_json(content: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Return an answer in JSON."""
    return Answer(json.dumps(content).encode() + b"\n", status, "application/json")


def is_whole(head: bytes) -> bool:
    """Return whether enough was received to answer."""
    return HEAD_END in head or len(head) >= HEAD_BYTES_MAX


def respond(head: bytes, routes: Mapping[str, Route]) -> bytes:
    """Return the whole answer to a request, of which only the line is looked at. Never raises.

    The connection is closed after each answer: that bounds what a client can hold.
    """
    words = head.partition(b"\r\n")[0].split(b" ")
    if HEAD_END not in head:
        answer = _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    elif len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        answer = _refusal(HTTPStatus.BAD_REQUEST)
    else:
        answer = _answer(words[0], words[1], routes)
    allow = "Allow: GET, HEAD\r\n" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        f"Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n"
    )
    return lines.encode() + (b"" if words[0] == b"HEAD" else answer.body)


def _answer(method: bytes, target: bytes, routes: Mapping[str, Route]) -> Answer:
    route = routes.get(target.partition(b"?")[0].decode("latin-1"))
    if route is None:
        return _refusal(HTTPStatus.NOT_FOUND)
    if method not in METHODS:
        return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        return route()
    except Exception as error:  # noqa: BLE001 - whatever it was, the next request is answered
        return Answer(f"{type(error).__name__}\n".encode(), HTTPStatus.INTERNAL_SERVER_ERROR)


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(f"{status.phrase}\n".encode(), status)
