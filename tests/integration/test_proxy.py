"""The proxy that breaks connections in other tests breaks them as it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from forwarder.testing.processes import LOOPBACK
from forwarder.testing.proxy import Proxy
from forwarder.testing.services import Valkey
from tests.integration.scenes import PATIENCE_S

SILENCE_S = 0.3


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that does nothing by itself."""
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy(target_port=listener.getsockname()[1]) as proxy:
        yield proxy


def connected(proxy: Proxy, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection((LOOPBACK, proxy.port), timeout=PATIENCE_S)
    server, _ = listener.accept()
    server.settimeout(PATIENCE_S)
    return client, server


def refused(proxy: Proxy) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex((LOOPBACK, proxy.port)) != 0


def received(end: socket.socket) -> bytes:
    """Return what comes until the end of the stream."""
    return b"".join(iter(lambda: end.recv(65536), b""))


def is_closed(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b""
    except ConnectionError:
        return True


def hears_nothing(end: socket.socket) -> bool:
    end.settimeout(SILENCE_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(PATIENCE_S)
    return False


def test_everything_passes_both_ways_to_its_last_byte(proxy: Proxy, listener: socket.socket) -> None:
    client, server = connected(proxy, listener)
    with client, server:
        sent = bytes(range(256)) * 40_000  # more than all buffers on the way hold

        def send(end: socket.socket) -> None:
            end.sendall(sent)
            end.shutdown(socket.SHUT_WR)

        # The second time the connection is half closed already, and its end is the link's end.
        for sender, receiver in ((client, server), (server, client)):
            sending = threading.Thread(target=send, args=(sender,))
            sending.start()
            assert received(receiver) == sent
            sending.join()


def test_a_cut_closes_both_sides_and_refuses_until_it_heals(proxy: Proxy, listener: socket.socket) -> None:
    client, server = connected(proxy, listener)
    with client, server:
        assert proxy.connections == 1
        proxy.cut()
        assert proxy.connections == 0
        assert is_closed(client)
        assert is_closed(server)
    assert refused(proxy)
    port = proxy.port
    proxy.heal()
    assert proxy.port == port
    again, server = connected(proxy, listener)
    with again, server:
        again.sendall(b"x")
        assert server.recv(1) == b"x"


def test_the_port_of_a_cut_proxy_stays_its_own(proxy: Proxy) -> None:
    proxy.cut()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((LOOPBACK, proxy.port))


def test_a_frozen_connection_is_open_and_silent_and_goes_on_after_healing(
    proxy: Proxy, listener: socket.socket
) -> None:
    client, server = connected(proxy, listener)
    with client, server:
        proxy.freeze()
        client.sendall(b"request")
        server.sendall(b"answer")
        assert hears_nothing(server)
        assert hears_nothing(client)
        proxy.heal()
        assert server.recv(16) == b"request"
        assert client.recv(16) == b"answer"


@pytest.mark.parametrize("reset", [False, True])
def test_a_server_does_not_hear_that_a_frozen_client_has_gone(
    proxy: Proxy, listener: socket.socket, reset: bool
) -> None:
    client, server = connected(proxy, listener)
    with server:
        proxy.freeze()
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert hears_nothing(server)
        proxy.heal()
        assert is_closed(server)


def test_a_new_connection_to_a_frozen_proxy_hears_nothing(proxy: Proxy, listener: socket.socket) -> None:
    proxy.freeze()
    client, server = connected(proxy, listener)
    with client, server:
        client.sendall(b"x")
        assert hears_nothing(server)
        proxy.cut()
        assert is_closed(client)


def test_a_delay_is_added_each_way(proxy: Proxy, listener: socket.socket) -> None:
    client, server = connected(proxy, listener)
    with client, server:
        proxy.delay(0.2)
        started = time.monotonic()
        client.sendall(b"x")
        server.recv(1)
        server.sendall(b"y")
        client.recv(1)
        assert 0.4 <= time.monotonic() - started < 5.0


def test_a_target_that_is_not_there_closes_the_connection(nobody: str) -> None:
    with (
        Proxy(target_port=int(nobody.rpartition(":")[2])) as proxy,
        socket.create_connection((LOOPBACK, proxy.port), timeout=PATIENCE_S) as client,
    ):
        assert is_closed(client)


def test_a_redis_client_loses_its_connection_and_gets_it_back(valkey: Valkey) -> None:
    with Proxy(target_port=valkey.port) as proxy:
        client = redis.Redis.from_url(proxy.through(valkey.url), retry=None, socket_timeout=SILENCE_S)
        with client:
            assert client.ping()
            proxy.freeze()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            proxy.cut()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            proxy.heal()
            assert client.ping()


def test_nothing_is_left_of_a_stopped_proxy(valkey: Valkey) -> None:
    with Proxy(target_port=valkey.port) as proxy:
        client = socket.create_connection((LOOPBACK, proxy.port), timeout=PATIENCE_S)
    with client:
        assert is_closed(client)
    assert refused(proxy)
    assert "proxy" not in [thread.name for thread in threading.enumerate()]
