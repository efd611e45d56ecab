"""Names that senders choose are looked up a few at a time."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from forwarder import lookups
from forwarder.lookups import AT_ONCE, Lookups, is_address, resolve


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("::1", True), ("localhost", False), ("127.1", False), ("a.example", False)],
)
def test_an_address_is_told_from_a_name(host: str, is_one: bool) -> None:
    assert is_address(host) is is_one


def test_addresses_come_in_the_systems_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, **kwargs: int) -> Any:
        assert (host, port, kwargs) == ("a.example", 443, {"type": socket.SOCK_STREAM})
        return [(0, 0, 0, "", ("2606:4700::1111", 443, 0, 0)), (0, 0, 0, "", ("93.184.216.34", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert resolve("a.example", 443) == ["2606:4700::1111", "93.184.216.34"]


class Hanging:
    """Look-ups that hang until they are let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.asked: list[str] = []
        self.lookups = Lookups(resolve=self.resolve)
        self.threads = [
            threading.Thread(target=self.lookups, args=("hangs.example", 80)) for _ in range(AT_ONCE)
        ]

    def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        self.begun.release()
        if host == "hangs.example":
            assert self.go_on.wait(20)
        return ["93.184.216.34"]

    def __enter__(self) -> Hanging:
        for thread in self.threads:
            thread.start()
            assert self.begun.acquire(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        for thread in self.threads:
            thread.join(20)


def test_hanging_lookups_take_a_few_threads_and_others_wait_for_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookups, "WAIT_S", 0.001)
    with Hanging() as hanging:
        with pytest.raises(TimeoutError):
            hanging.lookups("a.example", 80)
        assert hanging.asked == ["hangs.example"] * AT_ONCE
        assert hanging.lookups("127.0.0.1", 80) == ["127.0.0.1"], "an address waits for nobody"
    assert hanging.lookups("a.example", 80) == ["93.184.216.34"]


def test_a_lookup_that_fails_gives_its_place_back() -> None:
    def fail(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    failing = Lookups(resolve=fail)
    for _ in range(AT_ONCE + 1):
        with pytest.raises(OSError, match="no such host"):
            failing("a.example", 80)
