"""The HTTP server against clients of every kind, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from forwarder.telemetry import http
from forwarder.telemetry.exchange import Answer
from forwarder.telemetry.http import CONNECTIONS_MAX, HttpServer, listen
from forwarder.testing.processes import LOOPBACK, free_port
from tests.integration.scenes import PATIENCE_S, wait_until

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = b"x" * 20_000_000


class Server:
    def __init__(self, host: str = LOOPBACK) -> None:
        self.port = free_port()
        self.http = HttpServer(
            listener=listen(host, self.port),
            routes={"/livez": lambda: Answer(b"ok\n"), "/large": lambda: Answer(LARGE)},
        )
        self.http.start()

    def connect(self, host: str = LOOPBACK) -> socket.socket:
        return socket.create_connection((host, self.port), timeout=PATIENCE_S)

    def answers(self, host: str = LOOPBACK) -> bool:
        with self.connect(host) as connection:
            connection.sendall(GET)
            return received(connection).endswith(b"\r\n\r\nok\n")

    def is_gone(self) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex((LOOPBACK, self.port)) != 0


def received(connection: socket.socket) -> bytes:
    """Return what comes until the end of the stream."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.stop()
    wait_until(server.is_gone)


def test_a_request_is_answered_and_the_connection_closed(server: Server) -> None:
    assert server.answers()


def test_an_ordinary_client_is_served(server: Server) -> None:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{server.port}/livez", timeout=PATIENCE_S) as answer:
        assert answer.read() == b"ok\n"


def test_a_request_that_comes_byte_by_byte_is_answered(server: Server) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(len(GET)):
            connection.sendall(GET[number : number + 1])
        assert received(connection).endswith(b"ok\n")


def test_a_large_answer_goes_out_whole_to_a_slow_reader(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(GET.replace(b"livez", b"large"))
        time.sleep(0.2)
        assert server.answers()  # nobody waits for it
        assert len(received(connection).partition(b"\r\n\r\n")[2]) == len(LARGE)


def test_who_sends_nothing_is_dropped_and_holds_up_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EXCHANGE_S", 0.5)
    with server.connect() as silent:
        assert server.answers()
        assert received(silent) == b""


def test_more_silent_clients_than_there_is_room_for_hold_up_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EXCHANGE_S", 10 * PATIENCE_S)
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(CONNECTIONS_MAX + 5)]
        assert server.answers()
        assert received(silent[0]) == b""  # the oldest made room


def test_who_leaves_before_the_answer_does_no_harm(server: Server) -> None:
    for _ in range(50):
        with server.connect() as connection:
            connection.sendall(GET)
    assert server.answers()


def test_garbage_is_answered_and_does_no_harm(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01" + b"\xff" * http.CHUNK_BYTES)
        assert received(connection).startswith(b"HTTP/1.1 431 ")
    assert server.answers()


def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    answered: list[bool] = []
    threads = [threading.Thread(target=lambda: answered.append(server.answers())) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answered == [True] * 24


def test_every_address_is_that_of_both_protocols() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    server = Server("::")
    try:
        assert server.answers("127.0.0.1")
        assert server.answers("::1")
    finally:
        server.http.stop()


def test_a_stopped_server_leaves_its_port(server: Server) -> None:
    server.http.stop()
    wait_until(server.is_gone)
    listen(LOOPBACK, server.port).close()
