"""The arithmetic of ``check``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.peak import peak
from forwarder.settings.model import Settings

LIMIT = Limit(2048 * MIB, "cgroup2")
SMALL: dict[str, Any] = {"message_bytes_max": MIB, "response_bytes_max": MIB}


GREEN: dict[str, Any] = {"pool": "gevent", "concurrency": 64, "inflight_bytes_max": 100 * MIB}


@pytest.mark.parametrize(
    ("settings", "mib"),
    [
        (Settings(concurrency=4), 60 + 4 * (24 + 640)),
        (Settings(concurrency=4, **SMALL), 60 + 4 * (24 + 10)),
        (Settings(concurrency=4, worker_rss_mb=90, **SMALL), 60 + 4 * (90 + 10)),
        (Settings(concurrency=4, result_backend="s3://bucket/", **SMALL), 60 + 25 + 4 * (24 + 5 + 10)),
        # What comes by reference and stays in memory counts where it is more than a message may have.
        (Settings(concurrency=4, stage_above_bytes=3 * MIB, **SMALL), 60 + 4 * (24 + 20)),
        # floor(2048 x 0.7 / 34) - 1 = 41 children fit.
        (Settings(autoscale=(100, 2), **SMALL), 60 + 58 * 34),
        (Settings(autoscale=(10, 2), **SMALL), 60 + 10 * 34),
        (Settings(autoscale=(10, 2)), 60 + 10 * (24 + 640)),
        (Settings(**GREEN, **SMALL), 60 + 2 + 5 * 102),
        (Settings(**GREEN), 60 + 2 + 5 * 228),
        (Settings(**GREEN | {"concurrency": 640}, **SMALL), 60 + 20 + 5 * 102),
    ],
)
def test_the_sum_for_these_settings(settings: Settings, mib: int) -> None:
    assert peak(settings, LIMIT).bytes == mib * MIB


def test_the_records_of_the_logging_hook_are_in_the_sum() -> None:
    one, many = Settings(concurrency=4, **SMALL), Settings(**GREEN, **SMALL)
    for settings, record_bytes in ((one, 4 * 3 * 1000 * 1024), (many, 9_000_000)):
        with_hook = replace(settings, hooks=("logging",), firehose_stream="records")
        aws = 25 * MIB + (4 * 5 * MIB if settings is one else 0)
        assert peak(with_hook, LIMIT).bytes - peak(settings, LIMIT).bytes == aws + record_bytes


def test_the_sum_is_written_as_on_paper() -> None:
    assert peak(Settings(concurrency=4, **SMALL), LIMIT).lines() == [
        "   60 MiB  the worker itself",
        "   96 MiB  4 processes (--concurrency) x 24 MiB",
        "   40 MiB  4 tasks, one in each, x 5 x 2 MiB (--message-bytes-max + --response-bytes-max)",
        "  196 MiB  at most, of 2,048 MiB (cgroup2)",
    ]


def test_what_passes_the_limit_does_not_fit() -> None:
    assert peak(Settings(concurrency=50, **SMALL), LIMIT).fits
    assert not peak(Settings(concurrency=60, **SMALL), LIMIT).fits
