"""The inference client against a real server, one misbehaviour after the other."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from forwarder.forwarding.errors import (
    ForwarderError,
    InferenceTimeout,
    InferenceUnreachable,
    InvalidResponse,
    ResponseTooLarge,
)
from forwarder.forwarding.ports import Answer
from forwarder.inference.client import InferenceClient
from forwarder.inference.readiness import probe, wait_until_ready
from forwarder.testing.certificates import write_self_signed
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, PATIENCE_S


def make_client(url: str, **settings: Any) -> InferenceClient:
    defaults: dict[str, Any] = {
        "connect_timeout_s": 2.0,
        "read_timeout_s": 5.0,
        "total_timeout_s": 10.0,
        "response_bytes_max": 1_000_000,
        "idle_max": 2,
    }
    return InferenceClient(url=url, **(defaults | settings))


@pytest.fixture
def client(model_server: ModelServer) -> Iterator[InferenceClient]:
    made = make_client(model_server.predict_url)
    yield made
    made.close()


def ask(client: InferenceClient, **behaviour: Any) -> Answer:
    return client.predict(json.dumps({"numbers": [1, 2], "behaviour": behaviour}).encode(), headers={})


def test_one_connection_serves_many_requests(client: InferenceClient, model_server: ModelServer) -> None:
    for _ in range(20):
        assert json.loads(ask(client).body)["sum"] == 3
    stats = model_server.stats()
    assert stats["requests"] == 20
    assert stats["connections"] == 2  # ours and the one that asks for the stats


@pytest.mark.parametrize("how", ["announced", "silent"])
def test_a_connection_that_the_server_closes_is_not_used_again(
    client: InferenceClient, model_server: ModelServer, how: str
) -> None:
    for _ in range(5):
        assert ask(client, close=how).status == 200
        time.sleep(0.2)  # the end of file is on its way
    assert model_server.stats()["connections"] == 6


def test_headers_come_back_in_lower_case(client: InferenceClient) -> None:
    answer = ask(client, status=503, retry_after="7")
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")


def test_a_server_that_is_not_there_is_unreachable(nobody: str) -> None:
    with pytest.raises(InferenceUnreachable, match="no connection"):
        ask(make_client(f"http://{nobody}/predict"))


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(InferenceUnreachable, match="no connection"):
        ask(make_client("http://model.invalid:80/predict"))


@pytest.mark.parametrize(
    ("behaviour", "settings", "error"),
    [
        ({"cut": True}, {}, InferenceUnreachable),
        (HELD, {"read_timeout_s": 0.3}, InferenceTimeout),
        (HELD, {"total_timeout_s": 0.3}, InferenceTimeout),
        # Each byte comes well within the read timeout: only the total can end these two.
        ({"trickle_s": 0.1}, {"read_timeout_s": 0.4, "total_timeout_s": 1.0}, InferenceTimeout),
        ({"trickle_head_s": 0.1}, {"read_timeout_s": 0.4, "total_timeout_s": 1.0}, InferenceTimeout),
        ({"huge_bytes": 1_000_001}, {}, ResponseTooLarge),
    ],
)
def test_a_call_that_gives_no_whole_answer_ends_with_its_error_and_closes_its_connection(
    model_server: ModelServer,
    behaviour: dict[str, Any],
    settings: dict[str, Any],
    error: type[ForwarderError],
) -> None:
    client = make_client(model_server.predict_url, **settings)
    started = time.monotonic()
    with pytest.raises(error):
        ask(client, **behaviour)
    assert time.monotonic() - started < 8, "not only by the timeouts that this test leaves as they are"
    assert "idle=0" in repr(client)


def test_an_answer_just_within_the_bound_is_taken(model_server: ModelServer) -> None:
    client = make_client(model_server.predict_url, response_bytes_max=50_002)
    assert len(ask(client, huge_bytes=50_000).body) == 50_002
    client.close()


class Scripted:
    """Answers on one connection with these bytes, one after the other, whatever is asked.

    With ``hang`` it then waits for the client to close, and sets ``closed``;
    with ``rude`` it closes without reading what the client still sends.
    """

    def __init__(
        self, *raw_answers: bytes, hang: bool = False, rude: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        self.closed = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http{'s' if tls else ''}://{address}/predict"
        threading.Thread(target=self._serve, args=(raw_answers, hang, rude), daemon=True).start()

    def _serve(self, raw_answers: tuple[bytes, ...], hang: bool, rude: bool) -> None:
        with self._listener:
            connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE_S)
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:  # the client would not have it
                return
        with connection, contextlib.suppress(ConnectionError):  # a client may close before it read all
            for raw_answer in raw_answers:
                connection.recv(65536)
                connection.sendall(raw_answer)
            if not hang:
                connection.shutdown(socket.SHUT_WR)
            while not rude and connection.recv(65536):
                pass
        self.closed.set()


def scripted_server(raw_answer: bytes, *, hang: bool = False) -> str:
    return Scripted(raw_answer, hang=hang).url


@pytest.mark.parametrize(
    "raw",
    [b"hello there\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"],
)
def test_an_answer_that_is_not_http_is_an_invalid_response(raw: bytes) -> None:
    with pytest.raises(InvalidResponse, match="not HTTP"):
        ask(make_client(scripted_server(raw)))


def test_a_server_that_closes_without_a_word_is_unreachable() -> None:
    with pytest.raises(InferenceUnreachable, match="before answering"):
        ask(make_client(scripted_server(b"")))


def test_a_chunked_answer_is_bounded_too() -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    url = scripted_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 4, hang=True)
    with pytest.raises(ResponseTooLarge):
        ask(make_client(url, response_bytes_max=100_000))


def test_a_chunked_answer_that_breaks_off_is_unreachable() -> None:
    url = scripted_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc")
    with pytest.raises(InferenceUnreachable):
        ask(make_client(url))


@pytest.mark.parametrize("status", [100, 102, 103])
def test_an_interim_answer_is_passed_over_for_the_one_that_follows(status: int) -> None:
    """http.client takes it for the answer and leaves the real one to whoever asks next."""
    raw = f"HTTP/1.1 {status} Early\r\n\r\n".encode() + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    client = make_client(Scripted(raw + b"{}", raw + b"[]", hang=True).url)
    assert [ask(client).body, ask(client).body] == [b"{}", b"[]"]
    client.close()


def test_bytes_that_follow_an_answer_are_never_the_next_tasks_answer() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    server = Scripted(raw + b"{}" + raw + b"[]", hang=True)
    client = make_client(server.url)
    assert ask(client).body == b"{}"
    assert server.closed.wait(PATIENCE_S)
    assert "idle=0" in repr(client)


def test_tls_is_spoken_to_the_name_in_the_url_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = write_self_signed(tmp_path / "server.pem", x509.IPAddress(ip_address("127.0.0.1")))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    client = make_client(Scripted(raw + b"{}", raw + b"[]", hang=True, tls=tls).url)
    assert [ask(client).body, ask(client).body] == [b"{}", b"[]"]
    client.close()
    other = Scripted(raw, hang=True, tls=tls).url.replace("127.0.0.1", "localhost")
    with pytest.raises(InferenceUnreachable, match=r"no connection.*CertVerification"):
        ask(make_client(other))


def test_an_answer_that_comes_before_the_body_was_read_is_taken() -> None:
    raw = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"
    for _ in range(5):
        client = make_client(Scripted(raw, rude=True).url)
        assert client.predict(b"x" * 5_000_000, headers={}).status == 413
        assert "idle=0" in repr(client)


def test_a_server_that_stops_reading_the_body_is_given_up() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
    started = time.monotonic()
    with listener, pytest.raises(InferenceTimeout):
        make_client(url, read_timeout_s=0.5).predict(b"x" * 50_000_000, headers={})
    assert time.monotonic() - started < 8


def test_the_server_learns_at_once_that_nobody_waits_any_more() -> None:
    raw = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 1000
    server = Scripted(raw, hang=True)
    with pytest.raises(ResponseTooLarge) as caught:
        ask(make_client(server.url))
    assert server.closed.wait(PATIENCE_S), "not only once the exception is forgotten"
    assert caught.value.code == "response_too_large"


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    assert ask(make_client(scripted_server(b"HTTP/1.0 200 OK\r\n\r\n{}"))).body == b"{}"


def test_the_probe_tells_ready_from_not_ready_from_gone(model_server: ModelServer, nobody: str) -> None:
    assert probe(model_server.health_url) is None
    model_server.control(ready=False)
    assert probe(model_server.health_url) == "HTTP 503"
    assert probe(f"http://{nobody}/readyz") == "no answer (ConnectionRefusedError)"
    assert probe(scripted_server(b"hello\r\n")) == "the answer is not HTTP"


def test_the_wait_for_the_server_says_so_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now, asked = [0.0], [0]

    def check() -> str | None:
        asked[0] += 1
        return None if asked[0] > 40 else "HTTP 503"

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with caplog.at_level("INFO"):
        wait_until_ready(check, url="http://x/readyz", sleep=sleep, monotonic=lambda: now[0])
    waits = [record for record in caplog.records if record.message.startswith("inference_wait")]
    assert len(waits) == 3  # at once, after 15 s, after 30 s
    assert "inference_ready" in caplog.text
