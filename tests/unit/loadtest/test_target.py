"""A deployed worker is watched where it is: its own limit of memory, and nothing where no pid is given."""

from __future__ import annotations

import pytest

from forwarder.loadtest import target
from forwarder.scaling.container import MIB, Limit
from forwarder.settings import resolve


@pytest.mark.parametrize(("pid", "limit_mb"), [(7, 256.0), (None, None)])
def test_the_limit_is_the_watched_workers_own(
    monkeypatch: pytest.MonkeyPatch, pid: int | None, limit_mb: float | None
) -> None:
    def limit(*, override_mb: int | None, pid: int | None = None) -> Limit:
        assert override_mb is None
        return Limit((256 if pid == 7 else 24_000) * MIB, "cgroup2")

    monkeypatch.setattr(target, "container_limit_bytes", limit)
    with target.deployed(resolve({}, {}, {}), worker_pid=pid, worker_log=None) as watched:
        assert watched.limit_mb == limit_mb
