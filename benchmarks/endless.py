"""A server for bodies of any size that holds none: S3 as far as the worker asks for it, and a model.

``python -m benchmarks.endless --port N`` serves 127.0.0.1. ``GET /bucket/N`` is an object of N
bytes, ranges and ETag included; ``PUT`` takes any object. ``POST /predict`` answers with the
number of bytes and their CRC-32, ``POST /predict/N`` with N bytes. ``GET /stats`` tells what came:
how often was asked, and bytes and CRC-32 of each object that was put.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from forwarder.testing.processes import Command, clean_env
from forwarder.testing.services import CHECKOUT, ModelServer

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 64 * 1024
#: Of a prime length, so that a piece that is missing or comes twice changes the sum.
PATTERN = random.Random(1).randbytes(PIECE_BYTES - 15) * 2


def pattern(start: int, end: int) -> Any:
    """Yield the bytes of every object from start to end."""
    period = len(PATTERN) // 2
    while start < end:
        piece = PATTERN[start % period : start % period + min(period, end - start)]
        start += len(piece)
        yield piece


def summed(size_bytes: int) -> dict[str, int]:
    """Return what the server says of an object of so many bytes that came whole."""
    crc = 0
    for piece in pattern(0, size_bytes):
        crc = zlib.crc32(piece, crc)
    return {"bytes": size_bytes, "crc32": crc}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: EndlessServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class named it
        """Keep quiet."""

    def do_GET(self) -> None:
        """Serve an object, or the stats."""
        if self.path == "/stats":
            self._answer({"asked": self.server.asked, "gets": self.server.gets, "put": self.server.put})
        elif self.path == "/readyz":
            self._answer({})
        else:
            self.server.gets += 1
            size = int(self.path.rpartition("/")[2])
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found else 0
            self.send_response(206 if found else 200)
            self.send_header("ETag", f'"{size}"')
            if found:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self._stream(start, size)

    def do_PUT(self) -> None:
        """Take an object."""
        self.server.put[self.path] = self._read()
        self.send_response(200)
        self.send_header("ETag", '"put"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """Be the model."""
        self.server.asked += 1
        seen = self._read()
        size = self.path.removeprefix("/predict").strip("/")
        if size:
            self.send_response(200)
            self._stream(0, int(size))
        else:
            self._answer(seen)

    def _read(self) -> dict[str, int]:
        size = left = int(self.headers["Content-Length"])
        crc = 0
        while left and (piece := self.rfile.read(min(left, PIECE_BYTES))):
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        return {"bytes": size - left, "crc32": crc}

    def _stream(self, start: int, end: int) -> None:
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        for piece in pattern(start, end):
            self.wfile.write(piece)

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class EndlessServer(ThreadingHTTPServer):
    """A thread a connection, and what came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.asked = 0
        self.gets = 0
        self.put: dict[str, dict[str, int]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone."""


class Endless(ModelServer):
    """The server as a process."""

    name = "endless"

    def command(self, folder: Path) -> Command:
        """Return how to start it, with the Python that runs us."""
        argv = [sys.executable, "-m", "benchmarks.endless", "--port", str(self.port)]
        return Command(argv=argv, env=clean_env(folder) | {"PYTHONPATH": str(CHECKOUT)})

    @property
    def env(self) -> dict[str, str]:
        """Return the worker's settings for it, as model server and as S3."""
        return super().env | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


def main() -> None:
    """Serve until the process is ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    with EndlessServer(options.parse_args().port) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
