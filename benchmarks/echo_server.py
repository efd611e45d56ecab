"""A model server that costs next to nothing: it answers each body with itself, after its ``sleep_s``.

    python -m benchmarks.echo_server --port N

``GET /stats`` has the number of requests, of those in flight and their peak, and when the last came
(``time.time``); any other GET is 200.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


class Stats:
    """What it was asked; ``GET /stats`` begins the peak anew."""

    requests = 0
    in_flight = 0
    peak = 0
    last_at = 0.0

    def taken(self) -> dict[str, float]:
        """Return the figures."""
        figures = {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "peak": self.peak,
            "last_at": self.last_at,
        }
        self.peak = self.in_flight
        return figures


class Echo(asyncio.Protocol):
    """One connection, which is kept; a client waits for each answer."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once the whole request is there."""
        self._received += data
        end = self._received.find(HEAD_END)
        if end < 0:
            return
        head, body = self._received[:end], self._received[end + len(HEAD_END) :]
        if head.startswith(b"GET"):
            self._received = b""
            self._answer(json.dumps(self._stats.taken()).encode() if b"/stats" in head else b"{}")
            return
        at = head.lower().find(LENGTH) + len(LENGTH)
        if len(body) < int(head[at:].split(b"\r\n", 1)[0]):
            return
        self._received = b""
        self._stats.requests += 1
        self._stats.last_at = time.time()
        self._stats.in_flight += 1
        self._stats.peak = max(self._stats.peak, self._stats.in_flight)
        sleep_s = json.loads(body)["sleep_s"]
        if sleep_s:
            asyncio.get_running_loop().call_later(sleep_s, self._echo, body)
        else:
            self._echo(body)

    def _echo(self, body: bytes) -> None:
        self._stats.in_flight -= 1
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


async def serve(port: int) -> None:
    """Serve until the process ends."""
    stats = Stats()
    server = await asyncio.get_running_loop().create_server(
        lambda: Echo(stats), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer every POST with its own body.")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))
