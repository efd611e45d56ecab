"""The limit of open files that a worker gives itself and its children."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import psutil
import pytest

from tests.integration.scenes import POOLS, RedisScene


@pytest.fixture
def low_limit() -> Iterator[int]:
    """Give what this test starts a soft limit below the hard one, which is returned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_allows_itself_as_many_open_files_as_it_may(
    redis_scene: RedisScene, low_limit: int, pool: str
) -> None:
    worker = redis_scene.ready(pool)
    for pid in (worker.pid, *worker.children()):
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (low_limit, low_limit)
