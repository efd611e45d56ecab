"""The load test against real services: its own, and a worker that runs elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forwarder.testing.processes import family
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S


def loadtest(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an environment of its own; its report goes to ``folder / "report"``."""
    return subprocess.run(
        [sys.executable, "-m", "forwarder", "loadtest", "--report", str(folder / "report"), *args],
        cwd=CHECKOUT,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report/report.json").read_text())
    return found


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_the_report_tells_of_tasks_memory_and_descriptors(tmp_path: Path, pool: str) -> None:
    options = ("--tasks", "30", "--sleep", "0.1", "--payload", "1k..4k", "--pool", pool)
    ran = loadtest(tmp_path, *options, "--concurrency", "3", "--memory-limit-mb", "1000")
    assert ran.returncode == 0, ran.stdout
    content = report(tmp_path)
    figures: Mapping[str, float] = content["figures"]
    assert (figures["sent"], figures["succeeded"], figures["missing"], figures["kills"]) == (30, 30, 0, 0)
    assert figures["workers_peak"] == (3 if pool == "prefork" else 0)
    assert figures["in_flight_peak"] <= 3  # 0 where no look fell into a task: a busy machine
    assert 20 < figures["rss_startup_mb"] <= figures["rss_peak_mb"] < 1000
    assert 10 < figures["unique_peak_mb"] < figures["rss_peak_mb"]
    assert 1 < figures["memory_share_peak_percent"] < 100
    assert figures["descriptors_peak"] > 5
    assert figures["completion_s"] >= 30 * 0.1 / 3
    assert content["settings"]["concurrency"] == "3"
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<svg") >= 4
    again = loadtest(tmp_path, *options, "--compare", str(tmp_path / "report/report.json"), "--name", "again")
    assert again.returncode == 0, again.stdout
    assert "%" in again.stdout
    assert "<th>difference</th>" in (tmp_path / "report/report.html").read_text()


def test_an_autoscaled_pools_decisions_are_counted(tmp_path: Path) -> None:
    ran = loadtest(
        tmp_path, "--tasks", "40", "--sleep", "0.3", "--autoscale", "4,1", "--memory-limit-mb", "2000"
    )
    assert ran.returncode == 0, ran.stdout
    figures = report(tmp_path)["figures"]
    assert figures["grow"] >= 1
    assert 1 < figures["workers_peak"] <= 4


def test_a_deployed_worker_is_loaded_and_watched(
    tmp_path: Path, valkey: Valkey, model_server: ModelServer
) -> None:
    services = {
        "FORWARDER_BROKER_URL": valkey.database(0),
        "FORWARDER_RESULT_BACKEND": valkey.database(1),
        "FORWARDER_QUEUES": "deployed",
    }
    model_server.control(behaviour={"status": 500})
    with Worker(pool="gevent", env={**services, **model_server.env}) as worker:
        worker.wait_ready()
        payload = tmp_path / "payload.json"
        payload.write_text('{"args": {"numbers": [1, 2]}}')
        where = ("--broker-url", valkey.database(0), "--result-backend", valkey.database(1))
        watched = ("--worker-pid", str(worker.pid), "--worker-log", str(worker.log_path))
        ran = loadtest(
            tmp_path, *where, *watched, "--queue", "deployed", "--tasks", "5", "--payload-file", str(payload)
        )
        assert worker.alive
        assert family(worker.pid)
    assert ran.returncode == 0, ran.stdout  # an error status is the task's result, not its failure
    figures = report(tmp_path)["figures"]
    assert figures["succeeded"] == 5
    assert figures["rss_peak_mb"] > 20
    assert figures["in_flight_peak"] is None


def test_a_worker_that_is_killed_is_counted(
    tmp_path: Path, valkey: Valkey, model_server: ModelServer
) -> None:
    where = {"FORWARDER_BROKER_URL": valkey.database(0), "FORWARDER_RESULT_BACKEND": valkey.database(1)}
    with Worker(pool="gevent", env={**where, "FORWARDER_QUEUES": "killed", **model_server.env}) as worker:
        worker.wait_ready()

        def kill() -> None:
            model_server.wait_in_flight(1)
            worker.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        payload = tmp_path / "payload.json"
        payload.write_text('{"args": {"numbers": [1], "behaviour": {"hold": true}}}')
        options = (
            "--broker-url",
            valkey.database(0),
            "--result-backend",
            valkey.database(1),
            "--queue",
            "killed",
        )
        watched = ("--worker-pid", str(worker.pid), "--worker-log", str(worker.log_path))
        ran = loadtest(
            tmp_path, *options, *watched, "--tasks", "3", "--stall", "3", "--payload-file", str(payload)
        )
        killer.join()
    assert ran.returncode == 1, ran.stdout
    figures = report(tmp_path)["figures"]
    assert (figures["missing"], figures["kills"]) == (3, 1)


def test_a_broker_that_is_not_there_is_exit_3(tmp_path: Path) -> None:
    ran = loadtest(tmp_path, "--broker-url", "redis://127.0.0.1:1/0", "--tasks", "1")
    assert ran.returncode == 3, ran.stdout
    assert "can't be reached" in ran.stdout


def test_tasks_that_fail_are_told_by_their_code_and_exit_1(tmp_path: Path) -> None:
    ran = loadtest(tmp_path, "--tasks", "3", "--response", "10k", "--response-bytes-max", "1000")
    assert ran.returncode == 1, ran.stdout
    assert "failed with response_too_large: 3" in ran.stdout
