"""A stand-in for an OpenAI-style server, with no model behind it: ``python server.py [PORT]``.

It has the parts that the forwarder meets: readiness, a bound of requests at a time with 429 and
Retry-After, errors as JSON, streams. The "model" answers with the number of words it was given, and
``sleep_s`` in the request stands for one that takes its time.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

AT_A_TIME = 2


class Server(ThreadingHTTPServer):
    """One thread a connection, ``AT_A_TIME`` completions."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.slots = threading.Semaphore(AT_A_TIME)
        self.seen = {"completed": 0, "busy": 0, "cancelled": 0}
        super().__init__(("127.0.0.1", port), Handler)


class Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class named it
        """Keep quiet."""

    def do_GET(self) -> None:
        """Serve readiness, the list of models, and what was seen."""
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": "words", "object": "model"}]})
        elif self.path == "/seen":
            self._answer(200, self.server.seen)
        else:
            self._refuse(404, "no such route")

    def do_POST(self) -> None:
        """Serve one chat completion."""
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            request = json.loads(raw)
            words = sum(len(message["content"].split()) for message in request["messages"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._refuse(400, "messages must be a list of objects with content")
        if self.path != "/v1/chat/completions":
            return self._refuse(404, "no such route")
        if not self.server.slots.acquire(blocking=False):
            self.server.seen["busy"] += 1
            return self._refuse(429, "too many requests at a time", ("Retry-After", "1"))
        try:
            self._complete(request, words)
        finally:
            self.server.slots.release()

    def _complete(self, request: dict[str, Any], words: int) -> None:
        if not self._work(request.get("sleep_s", 0.0)):
            self.server.seen["cancelled"] += 1
            self.close_connection = True
            return
        self.server.seen["completed"] += 1
        text = f"{words} words"
        if request.get("stream"):
            chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
            self._send(200, "text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())
            return
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": words, "completion_tokens": 2, "total_tokens": words + 2}
        self._answer(
            200, {"object": "chat.completion", "model": "words", "choices": [choice], "usage": usage}
        )

    def _work(self, seconds: float) -> bool:
        """Take so long; return False as soon as the client has closed its connection, as vLLM does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            try:
                if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return False
            except BlockingIOError:
                pass
        return True

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        self._answer(status, {"error": {"message": message, "code": status}}, *headers)

    def _answer(self, status: int, value: Any, *headers: tuple[str, str]) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), *headers)

    def _send(self, status: int, content_type: str, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(len(content))),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    with Server(int(sys.argv[1]) if len(sys.argv) > 1 else 8000) as server:
        server.serve_forever()
