"""Peers on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from forwarder.testing.services import Valkey
from tests.integration.redis_leases.peer import MakePeer, Peer


@pytest.fixture
def peer(valkey: Valkey, queue_name: str) -> Iterator[MakePeer]:
    with ExitStack() as stack:

        def make(server: Valkey = valkey, **options: Any) -> Peer:
            made = Peer(server.url, queue_name, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def server(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client
