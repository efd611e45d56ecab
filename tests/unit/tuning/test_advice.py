"""Measurements to settings, by table; and the advice as an env file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forwarder.scaling.container import MIB, Limit
from forwarder.settings import Settings, resolve
from forwarder.settings.table import BY_FIELD
from forwarder.tuning.advice import Measured, advise, applied, container, size
from forwarder.tuning.asking import Fetched
from forwarder.tuning.child import Child
from forwarder.tuning.levels import Level
from forwarder.tuning.page import env_file, measurements, recommendations

KNEE = Level(8, 16.0, [0.5] * 160, [100_000] * 160)
MEASURED = Measured(
    message_bytes=[10_000, 400_000],
    knee=KNEE,
    knee_why="8 do",
    fetched=[],
    task_growth_bytes=None,
    child=None,
    limit=Limit(2048 * MIB, "cgroup2"),
    cores=2,
)


def advised(settings: Settings | None = None, **changes: Any) -> dict[str, Any]:
    advice = advise(replace(MEASURED, **changes), settings or Settings())
    return {one.field: one.value for one in advice}


def test_the_advice_for_payloads_of_a_few_hundred_kilobytes() -> None:
    assert advised() == {
        "concurrency": 8,
        "pool": "gevent",
        "message_bytes_max": 2 * MIB,  # 4 x 400,000
        "response_bytes_max": MIB,
        "inflight_bytes_max": 8 * MIB,  # 2 x 8 x 500,000
        "task_timeout_s": 10,
    }


def test_a_slow_answer_gets_ten_times_as_long() -> None:
    slow = replace(KNEE, latencies_s=[0.5] * 98 + [12.3] * 2)
    assert advised(knee=slow)["task_timeout_s"] == 123


@pytest.mark.parametrize(
    ("per_s", "cores", "limit_mb", "pool"),
    [
        (16, 2, 2048, "gevent"),
        (874, 2, 2048, "gevent"),
        (900, 2, 2048, "prefork"),
        (900, 1, 2048, "gevent"),  # there is no second core
        (900, 2, 256, "gevent"),  # 8 x 27 MiB do not fit below 70 %
    ],
)
def test_processes_only_where_one_core_is_not_enough_and_they_fit(
    per_s: float, cores: int, limit_mb: int, pool: str
) -> None:
    knee = replace(KNEE, per_s=per_s)
    assert advised(knee=knee, cores=cores, limit=Limit(limit_mb * MIB, "cgroup2"))["pool"] == pool


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        (Settings(), "prefork"),  # 8 x (24 + 3) MiB fit below 70 % of 400, less 60
        (Settings(worker_rss_mb=30), "gevent"),
        (Settings(result_backend="s3://bucket/"), "gevent"),  # boto3 takes 5 MiB more
    ],
)
def test_a_process_counts_as_it_usually_is_or_as_the_operator_says(settings: Settings, pool: str) -> None:
    knee, limit = replace(KNEE, per_s=900.0), Limit(400 * MIB, "cgroup2")
    assert advised(settings, knee=knee, limit=limit)["pool"] == pool


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        (Settings(), "prefork"),  # 8 x (1.3 x 12 + 3) MiB fit below 70 % of 310, less 60
        (Settings(worker_rss_mb=30), "gevent"),
        (Settings(result_backend="s3://bucket/"), "gevent"),  # a client is not in what was measured
    ],
)
def test_a_process_that_was_measured_counts_with_some_room(settings: Settings, pool: str) -> None:
    knee, limit = replace(KNEE, per_s=900.0), Limit(310 * MIB, "cgroup2")
    assert advised(settings, knee=knee, limit=limit)["pool"] == "gevent"
    assert advised(settings, knee=knee, limit=limit, child=Child(12 * MIB, 20))["pool"] == pool


@pytest.mark.parametrize(
    ("settings", "pool", "rss_mb"),
    [
        (Settings(), "prefork", 16),  # 1.3 x 12
        (Settings(result_backend="s3://bucket/"), "prefork", 21),
        (Settings(worker_rss_mb=30), "prefork", None),  # the operator has said it
        (Settings(autoscale=(8, 2)), "prefork", None),  # it goes by its living children
        (Settings(), "gevent", None),
    ],
)
def test_the_measured_size_is_advised_where_nothing_else_tells_it(
    settings: Settings, pool: str, rss_mb: int | None
) -> None:
    knee = replace(KNEE, per_s=900.0 if pool == "prefork" else 16.0)
    advice = advised(settings, knee=knee, child=Child(12 * MIB, 20))
    assert advice["pool"] == pool
    assert advice.get("worker_rss_mb") == rss_mb


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (Child(12 * MIB + MIB // 2, 20), "12.5 MiB for itself (the larger of two, after 20 tasks)"),
        (None, "not measured: no time"),
    ],
)
def test_a_process_is_shown_as_measured_or_with_the_reason_why_not(child: Child | None, words: str) -> None:
    lines = measurements(replace(MEASURED, child=child), [KNEE], child_why="no time")
    assert f"  a prefork process: {words}" in lines


def test_concurrency_stays_within_the_memory() -> None:
    # (200 x 0.7 - 60) MiB / (50 MiB + the slot)
    assert advised(task_growth_bytes=50 * MIB, limit=Limit(400 * MIB, "cgroup2"))["concurrency"] == 4


def test_a_task_takes_what_was_measured_or_five_copies_whichever_is_more() -> None:
    assert MEASURED.task_bytes == 5 * 500_000
    assert replace(MEASURED, task_growth_bytes=9 * MIB).task_bytes == 9 * MIB


def test_the_budget_stays_within_the_memory() -> None:
    small = Limit(100 * MIB, "cgroup2")
    assert advised(limit=small)["inflight_bytes_max"] == 2 * MIB  # (70 - 60) MiB / 5


def test_slots_also_wait_for_downloads() -> None:
    # A second of download beside half a second of inference: three times the slots.
    advice = advised(fetched=[Fetched(1.0, 100_000)] * 3)
    assert advice["concurrency"] == 24
    assert advice["stage_above_bytes"] == 128 * 1024
    assert advice["input_timeout_s"] == 10


def test_large_inputs_go_by_way_of_the_disk_which_has_room_for_all_slots() -> None:
    advice = advised(fetched=[Fetched(0.0, 500 * MIB)])
    assert advice["stage_above_bytes"] == Settings().stage_above_bytes
    assert advice["stage_bytes_max"] == 2 * 8 * 500 * MIB + Settings().destination_bytes_max


def test_an_autoscaled_pool_is_advised_its_largest_size() -> None:
    advice = advised(Settings(autoscale=(100, 2)))
    assert advice["autoscale"] == "8,2"
    assert "concurrency" not in advice


def test_what_is_advised_is_accepted_as_settings() -> None:
    for fetched in ([], [Fetched(0.1, 500 * MIB)]):
        for settings in (Settings(), Settings(autoscale=(10, 9))):
            advice = advise(replace(MEASURED, fetched=fetched), settings)
            resolved = resolve({}, {BY_FIELD[one.field].environ: str(one.value) for one in advice}, {})
            assert resolved.warnings == ()
            assert replace(applied(settings, advice), autoscale=None) == replace(
                resolved.settings, autoscale=None
            )


def test_the_container_has_room_for_the_peak_of_what_is_advised() -> None:
    needed, why = container(MEASURED, Settings(), advise(MEASURED, Settings()))
    # 60 + 8 x 32 KiB + 5 x (8 + 3) = 115.25 MiB, by 70 %, in steps of 64 MiB
    assert needed == 192
    assert why == "115 MiB at most (see check) / 70 % (--memory-high-percent)"


def test_a_container_that_is_too_small_is_named() -> None:
    measured = replace(MEASURED, limit=Limit(100 * MIB, "cgroup2"))
    assert container(measured, Settings(), advise(measured, Settings()))[1].endswith("; it has 100 MiB")


def test_the_env_file_holds_the_advice_and_nothing_else() -> None:
    settings = Settings(broker_url="redis://:hunter2@host/0", callback_secret="hunter2")
    text = env_file(MEASURED, settings, advise(MEASURED, settings))
    given = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert given["FORWARDER_CONCURRENCY"] == "8"
    assert given["CELERY_WORKER_POOL"] == "gevent"
    assert len(given) == 6
    assert "# 8 do." in text
    assert "hunter2" not in text


def test_every_recommendation_is_shown_with_what_is_in_effect_and_why() -> None:
    text = "\n".join(recommendations(MEASURED, Settings(), advise(MEASURED, Settings())))
    assert "--concurrency         8  (now 4)" in text
    assert "--task-timeout        10  (now 3600)" in text
    assert "the container         192 MiB of memory or more" in text
    kept = "\n".join(recommendations(MEASURED, Settings(concurrency=8), advise(MEASURED, Settings())))
    assert "--concurrency         8  (as it is)" in kept


def test_reasons_are_as_wide_as_the_terminal() -> None:
    settings = Settings()
    shown = [
        *measurements(MEASURED, [], child_why="there is no room for one " * 5, width=80),
        *recommendations(MEASURED, settings, advise(MEASURED, settings), width=80),
    ]
    assert 70 < max(map(len, shown)) <= 80


def test_the_levels_are_shown_from_few_to_many() -> None:
    levels = [Level(1, 1.0, [0.1], [5]), Level(4, 0.0, busy=3), Level(2, 1.0, [0.1], [5])]
    rows = [
        line.split()
        for line in measurements(MEASURED, levels, child_why="")
        if line.split()[:1] in (["1"], ["2"], ["4"])
    ]
    assert rows == [
        ["1", "1", "0.100", "0.100", "0", "0"],
        ["2", "1", "0.100", "0.100", "0", "0"],
        ["4", "0", "-", "-", "3", "0"],
    ]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (9999, "9,999 B"), (20480, "20 KiB"), (20 * MIB, "20 MiB")]
)
def test_sizes_are_written_in_the_unit_that_fits(number: int, words: str) -> None:
    assert size(number) == words
