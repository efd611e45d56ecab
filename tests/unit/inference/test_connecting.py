"""Connections to the inference server: which hosts are looked up, and in which order addresses are tried."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from forwarder.inference.connecting import connect


class Network:
    """Sockets that note where they went; ``connect`` may refuse. A look-up fails the test (see conftest)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[tuple[int, Any]] = []
        self.closed = 0
        self.refuse: Callable[[str], BaseException | None] = lambda address: None
        network = self

        class Sock:
            def __init__(self, family: int, kind: int) -> None:
                assert kind == socket.SOCK_STREAM
                self.family = family

            def settimeout(self, seconds: float) -> None:
                assert seconds == 5.0

            def connect(self, address: tuple[str, int]) -> None:
                network.tried.append((self.family, address))
                if error := network.refuse(address[0]):
                    raise error

            def close(self) -> None:
                network.closed += 1

        monkeypatch.setattr(socket, "socket", Sock)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", V4), ("10.1.2.3", V4), ("::1", V6)])
def test_an_address_is_not_looked_up(network: Network, host: str, family: int) -> None:
    connect(host, 5005, 5.0)
    assert network.tried == [(family, (host, 5005))]
    assert network.closed == 0


def test_localhost_is_not_looked_up_and_tried_in_both_families(network: Network) -> None:
    network.refuse = lambda address: ConnectionRefusedError() if address == "::1" else None
    connect("localhost", 5005, 5.0)
    assert network.tried == [(V6, ("::1", 5005)), (V4, ("127.0.0.1", 5005))]
    assert network.closed == 1


def test_a_server_that_is_nowhere_is_refused_by_the_last_address(network: Network) -> None:
    network.refuse = OSError
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        connect("localhost", 5005, 5.0)
    assert network.closed == 2


def test_whoever_is_killed_while_connecting_leaves_no_socket_and_tries_no_other(network: Network) -> None:
    network.refuse = lambda address: SystemExit()
    with pytest.raises(SystemExit):
        connect("localhost", 5005, 5.0)
    assert (len(network.tried), network.closed) == (1, 1)


def test_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given: asked.append(given))
    connect("model", 80, 5.0)
    assert asked == [(("model", 80), 5.0)]
