"""The demo: both pools account for every task, and whatever happens nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from forwarder.testing.processes import family, wait_gone
from forwarder.testing.services import CHECKOUT, ModelServer
from tests.integration.scenes import PATIENCE_S, wait_until

PID = re.compile(r"worker +pid (\d+)")


class RunningDemo:
    """``python -m forwarder demo`` with a temporary folder of its own."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.folder = folder
        self._output = folder.with_suffix(".out")
        folder.mkdir()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "forwarder", "demo", *args],
                cwd=CHECKOUT,
                env={"PATH": os.environ["PATH"], "TMPDIR": str(folder), "HOME": str(folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> list[psutil.Process]:
        """Block until the demo has written the text; return every process that runs for it then."""
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline_s, self.output()
            time.sleep(0.02)
        return family(self.process.pid)

    def left_behind(self) -> list[Path]:
        return sorted(self.folder.rglob("*"))


StartDemo = Callable[..., RunningDemo]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Start a demo with the given arguments."""
    started: list[RunningDemo] = []

    def start(*args: str) -> RunningDemo:
        started.append(RunningDemo(tmp_path / "demo", *args))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize(("pool", "builds_max"), [("prefork", 4), ("gevent", 1)])
def test_every_task_has_its_result_and_its_record(demo: StartDemo, pool: str, builds_max: int) -> None:
    running = demo("--pool", pool, "--tasks", "8")
    assert running.process.wait(2 * PATIENCE_S) == 0, running.output()
    output = running.output()
    assert output.splitlines()[-1] == "demo: 16 sent, 16 results, 16 records, 0 lost"
    assert output.count("p50") == output.count("p99") == output.count("RSS") == 2
    builds = [int(number) for number in re.findall(r"client builds: (\d+)", output)]
    assert len(builds) == 2
    assert all(1 <= number <= builds_max for number in builds)  # one at most for each process that runs tasks
    assert "\x1b" not in output  # plain: nobody watches a terminal
    assert max(map(len, output.splitlines())) <= 80
    assert running.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(demo: StartDemo, number: int) -> None:
    running = demo("--pool", "gevent", "--tasks", "2000")
    processes = running.wait_for("  worker ")
    assert int(PID.findall(running.output())[0]) in {process.pid for process in processes}
    running.process.send_signal(number)
    assert running.process.wait(PATIENCE_S) == 1, running.output()
    assert wait_gone(processes, timeout_s=PATIENCE_S)
    assert running.left_behind() == []


def test_a_killed_demo_leaves_no_process_and_no_file(demo: StartDemo) -> None:
    running = demo("--pool", "prefork", "--tasks", "2000")
    processes = running.wait_for("  worker ")
    running.process.kill()
    running.process.wait()
    assert wait_gone(processes, timeout_s=PATIENCE_S)
    wait_until(lambda: running.left_behind() == [])


def test_a_failing_model_server_is_told_task_by_task_and_exits_1(
    demo: StartDemo, model_server: ModelServer
) -> None:
    model_server.control(behaviour={"status": 500})
    running = demo("--tasks", "6", "--predict-url", model_server.predict_url)
    assert running.process.wait(2 * PATIENCE_S) == 1, running.output()
    complaint, last = running.output().splitlines()[-2:]
    assert complaint.startswith("missing or wrong: status 500 from the model server: 12 (")
    assert last == "demo: 12 sent, 0 results, 12 records, 12 lost"
    assert running.left_behind() == []


def test_another_model_server_needs_only_to_succeed(demo: StartDemo, model_server: ModelServer) -> None:
    model_server.control(behaviour={"huge_bytes": 10})
    running = demo("--tasks", "6", "--predict-url", model_server.predict_url)
    assert running.process.wait(2 * PATIENCE_S) == 0, running.output()
    assert model_server.stats()["requests"] == 12
