"""``check --live``: ask the worker beside this process whether it is alive, as an exec probe does."""

from __future__ import annotations

import json
import socket

import click

from forwarder.cli.exits import FAILED, OK, UNREACHABLE
from forwarder.settings import Settings, SettingsError
from forwarder.settings.table import BY_FIELD

#: Seconds for which the worker's answer is waited for, which comes within 0.05.
ANSWER_S = 5.0
#: Where a worker is found that listens on every address.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def ask(settings: Settings) -> int:
    """Print what ``/livez`` answers; return the exit code. Blocks for ``ANSWER_S`` at most.

    Raises SettingsError where the settings name no port.
    """
    if not settings.http_port:
        raise SettingsError(BY_FIELD["http_port"].title, "0", "the port that the worker serves /livez on")
    host = LOOPBACK.get(settings.http_host, settings.http_host)
    try:
        answer = get(host, settings.http_port, "/livez")
    except OSError as error:
        click.echo(f"no answer from {host} port {settings.http_port}: {str(error) or type(error).__name__}")
        return UNREACHABLE
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if words[0] != b"HTTP/1.1" or words[1:2] not in ([b"200"], [b"503"]):
        click.echo(f"what answers on {host} port {settings.http_port} is not a worker")
        return UNREACHABLE
    click.echo(_verdict(body))
    return OK if words[1] == b"200" else FAILED


def get(host: str, port: int, path: str) -> bytes:
    """Return the whole answer to a GET. Raises OSError. Without http.client, whose import takes longer."""
    with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def _verdict(body: bytes) -> str:
    try:
        reasons = json.loads(body)["reasons"]
    except (ValueError, KeyError, TypeError):
        return "not live"
    return f"not live: {', '.join(map(str, reasons))}" if reasons else "live"
