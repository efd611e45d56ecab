"""A sample model server: real arithmetic, and every misbehaviour that a worker must survive.

Run it as ``python -m forwarder.testing.model_server --port N``. It serves 127.0.0.1 only.

``POST /predict`` takes ``{"id": …, "numbers": [integers], "behaviour": {…}}`` (all optional) and
answers ``{"id": …, "sum": …, "weighted_sum": …, "sum_of_squares": …}``, where the weight of a
number is its place, counted from 1. Integers are exact, so a client can check the answer.

``GET /readyz`` is 200 or 503. ``GET /stats`` counts requests, connections, the peak of
concurrent requests and the requests per ``id``. ``POST /control`` takes ``{"ready": bool,
"behaviour": {…} for requests that bring none, "release": true to answer what is held and hold
nothing more, "reset": true to clear the stats and to hold again}``.

With ``--ledger FILE`` each request is noted there as it begins, with the port that it came
from: that outlives this process (see :mod:`forwarder.testing.ledger`).

``behaviour``, in the order in which it takes effect:

=================  ===========================================================================
``sleep_s``        wait before anything else
``hold``           then wait for the release; end at once when the client closes its connection
``busy``           answer the first so many requests of this ``id`` with 503 (or ``status``)
``status``         this status; the body stays JSON
``retry_after``    the Retry-After header's value, on ``busy`` and ``status``
``answer``         instead of the sums: ``text``, ``empty``, ``html``, ``nan`` or ``deep``
``huge_bytes``     instead of the sums: a JSON string of at least so many bytes
``cut``            close the connection half-way through the body
``trickle_s``      send the body byte by byte with this pause between bytes
``trickle_head_s`` the same for status line, headers and body
``close``          ``announced``: close after the answer, and say so; ``silent``: without a word
=================  ===========================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from forwarder.testing.ledger import Ledger

LOOPBACK = "127.0.0.1"
BACKLOG = 1024  # more than the 512 connections that may come at once
STACK_BYTES = 1024 * 1024  # of a connection's thread: 512 of them need not reserve 4 GiB
HOLD_LOOK_S = 0.1  # between two looks whether the client of a held request is still there
DEEP = 100_000  # brackets; Python's json gives up after about a thousand

ANSWERS = {
    "text": ("text/plain", b"this is not JSON"),
    "empty": ("application/json", b""),
    "html": ("text/html", b"<html><body><h1>Internal Server Error</h1></body></html>"),
    "nan": ("application/json", b'{"sum": NaN}'),
    "deep": ("application/json", b"[" * DEEP + b"]" * DEEP),
}


def predict(numbers: Sequence[int]) -> dict[str, int]:
    """Return the three sums of the model."""
    return {
        "sum": sum(numbers),
        "weighted_sum": sum(place * number for place, number in enumerate(numbers, start=1)),
        "sum_of_squares": sum(number * number for number in numbers),
    }


class Stats:
    """What the server has been asked. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything, except the requests that run now."""
        with self._lock:
            self._in_flight = getattr(self, "_in_flight", 0)
            self._peak = self._in_flight
            self._connections = 0
            self._requests: Counter[str] = Counter()

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self._connections += 1

    def begin(self, request_id: str) -> int:
        """Count a request in; return how many this id has had, this one included."""
        with self._lock:
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            self._requests[request_id] += 1
            return self._requests[request_id]

    def end(self) -> None:
        """Count a request out."""
        with self._lock:
            self._in_flight -= 1

    def snapshot(self) -> dict[str, Any]:
        """Return the JSON of ``GET /stats``."""
        with self._lock:
            return {
                "requests": self._requests.total(),
                "connections": self._connections,
                "in_flight": self._in_flight,
                "peak": self._peak,
                "by_id": dict(self._requests),
            }


class ModelHTTPServer(ThreadingHTTPServer):
    """One thread a connection, with what the threads share."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(self, port: int, *, ledger: Ledger | None = None) -> None:
        self.stats = Stats()
        self.ledger = ledger
        self.ready = True
        self.behaviour: dict[str, Any] = {}
        self.released = threading.Event()
        super().__init__((LOOPBACK, port), Handler)


class Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    server: ModelHTTPServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one segment

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self.server.stats.connected()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class named it
        """Keep quiet: bodies are nobody's business and a line a request is slow."""

    def do_GET(self) -> None:
        """Serve readiness and stats."""
        if self.path == "/readyz":
            self._answer_json({}, HTTPStatus.OK if self.server.ready else HTTPStatus.SERVICE_UNAVAILABLE)
        elif self.path == "/stats":
            self._answer_json(self.server.stats.snapshot())
        else:
            self._answer_json({"error": "no such route"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Serve predictions and control."""
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._answer_json({"error": "the body must be a JSON object"}, HTTPStatus.BAD_REQUEST)
        elif self.path == "/predict" and _are_integers(body.get("numbers", [])):
            self._predict(body)
        elif self.path == "/predict":
            self._answer_json({"error": "numbers must be a list of integers"}, HTTPStatus.BAD_REQUEST)
        elif self.path == "/control":
            self._control(body)
        else:
            self._answer_json({"error": "no such route"}, HTTPStatus.NOT_FOUND)

    def _control(self, changes: dict[str, Any]) -> None:
        self.server.ready = changes.get("ready", self.server.ready)
        self.server.behaviour = changes.get("behaviour", self.server.behaviour)
        if changes.get("release"):
            self.server.released.set()
        if changes.get("reset"):
            self.server.stats.reset()
            self.server.released.clear()
        self._answer_json({})

    def _predict(self, body: dict[str, Any]) -> None:
        behaviour = body.get("behaviour", self.server.behaviour)
        request_id = str(body.get("id", ""))
        if self.server.ledger is not None:
            self.server.ledger.note("asked", request_id, str(self.client_address[1]))
        nth = self.server.stats.begin(request_id)
        try:
            time.sleep(behaviour.get("sleep_s", 0.0))
            if behaviour.get("hold"):
                self._hold()
            self._misbehave(body, behaviour, nth=nth)
        except OSError:
            self.close_connection = True  # the client has given up: nobody is left to answer
        finally:
            self.server.stats.end()

    def _hold(self) -> None:
        while not self.server.released.wait(HOLD_LOOK_S):
            with contextlib.suppress(BlockingIOError):
                if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise ConnectionAbortedError("the client has given up")

    def _misbehave(self, body: dict[str, Any], behaviour: dict[str, Any], *, nth: int) -> None:
        busy_for = behaviour.get("busy")
        if busy_for is None:
            self._send(behaviour, behaviour.get("status", HTTPStatus.OK), *_content(body, behaviour))
        elif nth <= busy_for:
            status = behaviour.get("status", HTTPStatus.SERVICE_UNAVAILABLE)
            self._send(behaviour, status, *_json({"busy": nth}))
        else:
            self._send(behaviour, HTTPStatus.OK, *_content(body, behaviour))

    def _answer_json(self, value: Any, status: int = HTTPStatus.OK) -> None:
        self._send({}, status, *_json(value))

    def _send(self, behaviour: dict[str, Any], status: int, content_type: str, content: bytes) -> None:
        lines = [
            f"HTTP/1.1 {status} {_phrase(status)}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(content)}",
        ]
        if "retry_after" in behaviour and status != HTTPStatus.OK:
            lines.append(f"Retry-After: {behaviour['retry_after']}")
        if behaviour.get("close") == "announced":
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        if behaviour.get("cut"):
            content = content[: len(content) // 2]
        self._write(head, pause_s=behaviour.get("trickle_head_s", 0.0))
        self._write(content, pause_s=behaviour.get("trickle_s", behaviour.get("trickle_head_s", 0.0)))
        self.wfile.flush()
        if behaviour.get("cut") or "close" in behaviour:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)

    def _write(self, data: bytes, *, pause_s: float) -> None:
        if not pause_s:
            self.wfile.write(data)
            return
        for place in range(len(data)):
            self.wfile.write(data[place : place + 1])
            self.wfile.flush()
            time.sleep(pause_s)


def _are_integers(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(isinstance(number, int) for number in numbers)


def _content(body: dict[str, Any], behaviour: dict[str, Any]) -> tuple[str, bytes]:
    if "answer" in behaviour:
        return ANSWERS[behaviour["answer"]]
    if "huge_bytes" in behaviour:
        return _json("x" * behaviour["huge_bytes"])
    return _json({"id": body.get("id"), **predict(body.get("numbers", []))})


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Sample model server on 127.0.0.1.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path)
    options = parser.parse_args()
    threading.stack_size(STACK_BYTES)
    ledger = None if options.ledger is None else Ledger(options.ledger)
    with ModelHTTPServer(options.port, ledger=ledger) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
