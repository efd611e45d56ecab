"""What is counted in the worker's log."""

from __future__ import annotations

import inspect
import logging
import signal
from pathlib import Path

import billiard.pool
import pytest
from billiard.common import human_status

from forwarder.loadtest.worker_log import WorkerLog
from forwarder.scaling import green_autoscaler, memory_guard, prefork_autoscaler
from forwarder.telemetry.json_lines import JsonLines

HEAD = "2026-01-01T00:00:00.000 INFO 7 forwarder.scaling.x: "


COUNTED = [
    ("autoscale action=grow reason=demand size=2 target=3 shown=2", "grow"),
    ("autoscale action=hold reason=idle_children size=2 target=2 shown=2", "hold"),
    ("autoscale action=shrink reason=memory_above_high size=3 target=2 shown=3", "shrink"),
    ("autoscale action=block reason=cap size=3 target=3 shown=3", "block"),
    ("slots_changed slots=8 before=4 running=4", "grow"),
    ("slots_changed slots=4 before=8 running=1", "shrink"),
    ("memory_soft_limit_passed share=0.71 limit_bytes=1 slots=3", "pressure"),
    ("inflight_bytes_reached bytes_max=1 held=3", "pressure"),
    ("Process 'ForkPoolWorker-3' pid:41 exited with 'signal 9 (SIGKILL)'", "kills"),
]


@pytest.mark.parametrize(("line", "name"), COUNTED)
def test_a_line_counts_as_what_it_tells(tmp_path: Path, line: str, name: str) -> None:
    assert counted(tmp_path, f"{HEAD}{line}") == {name: 1}


@pytest.mark.parametrize(("line", "name"), COUNTED)
def test_a_line_of_json_counts_as_the_same(tmp_path: Path, line: str, name: str) -> None:
    logger = "celery.pool" if name == "kills" else "forwarder.scaling.x"
    record = logging.makeLogRecord({"name": logger, "levelname": "INFO", "msg": line})
    assert counted(tmp_path, JsonLines().format(record)) == {name: 1}


def counted(folder: Path, line: str) -> dict[str, int]:
    log = folder / "log"
    log.write_text(f"{line}\n")
    return {name: count for name, count in WorkerLog(log).read().items() if count}


@pytest.mark.parametrize(
    "line",
    [
        "autoscale_start max=9 min=2 limit_mb=1 limit_source=host low=0.5 high=0.7",
        "task_forwarded task_id=autoscale",
        "Process 'ForkPoolWorker-3' pid:41 exited with 'exitcode 155'",
    ],
)
def test_other_lines_count_as_nothing(tmp_path: Path, line: str) -> None:
    assert counted(tmp_path, f"{HEAD}{line}") == {}


@pytest.mark.parametrize("line", ["{", "[]", '{"level":"INFO"}', "\udcff"])
def test_what_somebody_else_writes_counts_as_nothing(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(line.encode(errors="surrogateescape") + b"\n")
    assert set(WorkerLog(log).read().values()) == {0}


def test_a_line_that_is_being_written_counts_once_and_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = WorkerLog(path)
    assert set(log.read().values()) == {0}  # there is no file yet
    path.write_text(f"{HEAD}autoscale action=gr")
    assert log.read()["grow"] == 0
    with path.open("a") as file:
        file.write(f"ow reason=demand\n{HEAD}autoscale action=hold reason=x\n")
    assert (log.read()["grow"], log.read()["hold"]) == (1, 1)


def test_of_a_deployed_workers_log_only_what_comes_from_now_on_counts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"{HEAD}autoscale action=grow reason=demand\n")
    log = WorkerLog(path, from_end=True)
    with path.open("a") as file:
        file.write(f"{HEAD}autoscale action=block reason=cap\n")
    counts = log.read()
    assert (counts["grow"], counts["block"]) == (0, 1)


def test_the_worker_still_writes_these_lines() -> None:
    assert '"autoscale action=%s reason=%s' in inspect.getsource(prefork_autoscaler)
    assert '"slots_changed slots=%d before=%d running=%d"' in inspect.getsource(green_autoscaler)
    source = inspect.getsource(memory_guard)
    assert '"memory_soft_limit_passed"' in source
    assert '"inflight_bytes_reached ' in source


def test_the_pool_still_tells_of_a_killed_child_in_these_words() -> None:
    assert "'Process %r pid:%r exited with %r'" in inspect.getsource(billiard.pool)
    assert human_status(-signal.SIGKILL) == "signal 9 (SIGKILL)"
