"""Unit tests use no network: an attempt ends the test, whatever the code under test catches."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import pytest
import urllib3  # noqa: F401 - binds a socket when it is imported, to see whether there is IPv6


def pytest_configure() -> None:
    """Let Hypothesis take its time: how fast it is tells about the machine, not about the code."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way out of the process fail; socket pairs, which never leave it, still work."""

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        pytest.fail("a unit test used the network: pass a fake in, or make it an integration test")

    for name in ("bind", "connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
