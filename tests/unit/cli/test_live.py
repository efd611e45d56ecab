"""The exec probe's verdicts, without a socket."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forwarder.cli import live
from forwarder.cli.main import main

HEAD = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n\r\n"
LIVE = HEAD % b"200 OK" + b'{"live": true, "reasons": []}\n'
STUCK = HEAD % b"503 Service Unavailable" + b'{"live": false, "reasons": ["loop", "hub"]}\n'


class Port:
    """What answers on the port."""

    def __init__(self) -> None:
        self.answer: bytes | OSError = LIVE
        self.asked: list[tuple[str, int, str]] = []

    def get(self, host: str, port: int, path: str) -> bytes:
        self.asked.append((host, port, path))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Port:
    port = Port()
    monkeypatch.setattr(live, "get", port.get)
    return port


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (LIVE, 0, "live\n"),
        (STUCK, 1, "not live: loop, hub\n"),
        (HEAD % b"503 Busy" + b"<html>", 1, "not live\n"),
        (ConnectionRefusedError("refused"), 3, "no answer from 127.0.0.1 port 8080: refused\n"),
        (TimeoutError(), 3, "no answer from 127.0.0.1 port 8080: TimeoutError\n"),
        (HEAD % b"404 Not Found", 3, "what answers on 127.0.0.1 port 8080 is not a worker\n"),
        (b"-ERR unknown command\r\n", 3, "what answers on 127.0.0.1 port 8080 is not a worker\n"),
        (b"", 3, "what answers on 127.0.0.1 port 8080 is not a worker\n"),
    ],
)
def test_the_exit_code_is_the_verdict(
    port: Port, capsys: pytest.CaptureFixture[str], answer: bytes | OSError, code: int, said: str
) -> None:
    port.answer = answer
    assert main(["check", "--live", "--http-port", "8080"]) == code
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")]
)
def test_a_worker_on_every_address_is_asked_on_loopback(port: Port, host: str, asked: str) -> None:
    assert main(["check", "--live", "--http-port", "8080", "--http-host", host]) == 0
    assert port.asked == [(asked, 8080, "/livez")]


def test_without_a_port_it_is_2_and_the_setting(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--live"]) == 2
    assert capsys.readouterr().err.startswith(
        "forwarder: --http-port (FORWARDER_HTTP_PORT) is '0'; accepted:"
    )


def test_an_exec_probe_loads_no_broker_library() -> None:
    """It is started every few seconds beside a worker that needs the processor."""
    code = (
        "import sys; from forwarder.cli.main import main; "
        "main(['check', '--live', '--http-port', '1']); "
        "sys.exit(bool({'celery', 'kombu', 'boto3', 'http.client', 'ssl', 'gevent'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
