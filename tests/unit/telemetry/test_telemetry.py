"""Log lines."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import billiard.pool
import billiard.util
import pytest
from celery.app.task import Context
from celery.app.trace import TraceInfo, log_policy_reject
from celery.exceptions import CPendingDeprecationWarning, Ignore, Reject
from celery.worker.consumer.consumer import CANCEL_TASKS_BY_DEFAULT  # type: ignore[attr-defined]

from forwarder.loadtest.worker_log import WorkerLog
from forwarder.telemetry.logs import POOLS_OWN, QUIETED, OneLine, StderrHandler, configure

TRACE = "celery.app.trace"


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "file.py", 1, message, (), None)


def test_a_message_is_one_line_whatever_it_holds() -> None:
    forged = "task_done task_id=x\n2026-01-01 ERROR all is lost\r\x1b[31m"
    assert OneLine("%(message)s").format(record(forged)) == (
        "task_done task_id=x\\n2026-01-01 ERROR all is lost\\r\\x1b[31m"
    )


def test_an_ordinary_message_stays_as_it_is() -> None:
    assert OneLine("%(levelname)s %(message)s").format(record("größe=5")) == "INFO größe=5"


def test_a_line_has_its_own_second() -> None:
    formatter, line = OneLine("%(asctime)s", "%H:%M:%S"), record("task_done")
    stock = logging.Formatter("%(asctime)s", "%H:%M:%S")
    for second in (1.0, 1.9, 2.0, 1.5):
        line.created = second
        assert formatter.format(line) == stock.format(line)


@pytest.fixture
def configured() -> Iterator[None]:
    """The worker's log, and afterwards the one that was there before."""
    root, filtered = logging.getLogger(), [logging.getLogger(name) for name in ("py.warnings", TRACE)]
    level, handlers, filters = root.level, list(root.handlers), [list(each.filters) for each in filtered]
    levels = {name: logging.getLogger(name).level for name in (*QUIETED, POOLS_OWN)}
    pools: Any = billiard.util.get_logger()  # which takes it apart from the root logger
    hooks = (threading.excepthook, sys.unraisablehook)
    before_it, passed_on = list(pools.handlers), pools.propagate
    switches, source = (logging.logThreads, logging.logMultiprocessing), logging._srcfile
    configure("INFO")
    yield
    root.setLevel(level)
    root.handlers[:], pools.handlers[:], pools.propagate = handlers, before_it, passed_on
    for each, had in zip(filtered, filters, strict=True):
        each.filters[:] = had
    threading.excepthook, sys.unraisablehook = hooks
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.logThreads, logging.logMultiprocessing = switches
    logging._srcfile = source
    logging.captureWarnings(False)


def test_a_line_does_not_ask_for_its_thread_which_under_gevent_is_made_for_it(configured: None) -> None:
    made = record("task_done")
    assert (made.thread, made.threadName, made.processName) == (None, None, None)
    assert made.process == os.getpid()


def test_a_line_does_not_look_for_where_it_was_logged(
    configured: None, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("x").warning("task_done")
    assert caplog.records[-1].funcName == "(unknown function)"


def test_what_celery_announces_for_a_later_version_is_not_logged_at_each_lost_connection(
    configured: None,
) -> None:
    announced = warnings.formatwarning(CANCEL_TASKS_BY_DEFAULT, CPendingDeprecationWarning, "file.py", 1)
    other = warnings.formatwarning("unclosed file", ResourceWarning, "file.py", 1)
    log = logging.getLogger("py.warnings")
    assert not log.filter(record(announced))
    assert log.filter(record(other))


LINES_OF_BOTH = """
from gevent import monkey
monkey.patch_all()
import _thread, logging, sys, gevent
from forwarder.telemetry import logs
from forwarder.telemetry.native import start_native
logs.configure("INFO")
log, ended = logging.getLogger("x"), []
assert type(log.root.handlers[0].lock) is type(logging._lock) is _thread.RLock

def write(native):
    for _ in range(5000 if native else 500):
        log.info("line")
        native or gevent.sleep(0)
    ended.append(native)

sys.setswitchinterval(1e-5)
start_native(lambda: write(True))
greenlets = [gevent.spawn(write, False) for _ in range(10)]
gevent.joinall(greenlets, timeout=30)
print(ended.count(False))
"""


def test_a_native_thread_that_logs_stops_no_greenlet_that_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINES_OF_BOTH], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "10\n"


def written(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what stands on standard error; the handler must have been made by the test."""
    return capsys.readouterr().err


@pytest.mark.parametrize("style", ["console", "json"])
def test_the_pool_tells_of_a_killed_child_in_a_line_of_the_logs_own_shape(
    configured: None, capsys: pytest.CaptureFixture[str], style: str, tmp_path: Path
) -> None:
    configure("INFO", style)  # once more: onto the stream that pytest reads
    billiard.pool.error("Process %r pid:%r exited with %r", "ForkPoolWorker-2", 7, "signal 9 (SIGKILL)")
    line = written(capsys)
    log = tmp_path / "log"
    log.write_text(line)
    assert WorkerLog(log).read()["kills"] == 1
    if style == "json":
        told = json.loads(line)
        assert (told["level"], told["logger"], told["pid"]) == ("ERROR", "multiprocessing", os.getpid())
    else:
        assert re.fullmatch(r"\d{4}-\S+ ERROR \d+ multiprocessing: Process 'ForkPoolWorker-2' .*\n", line)
    billiard.util.debug("Unknown job state: %s (args=%s)", 5, "hunter2")
    assert written(capsys) == "", "quieted: it may quote"


def test_a_task_that_goes_back_is_not_warned_of_with_a_traceback(
    configured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("INFO")
    log = logging.getLogger(TRACE)
    task: Any = SimpleNamespace(name="t", throws=())
    request: Any = Context(id="a", hostname="h", args=(), kwargs={})
    for error in (Reject("result_store_unavailable", requeue=True), Ignore(), ValueError("hunter2")):
        try:
            raise error
        except Exception:  # noqa: BLE001
            TraceInfo("REJECTED", error).handle_reject(task, request)
        log.warning("something else: %(description)s", {"description": "rejecting"})
    lines = [line for line in written(capsys).splitlines() if TRACE in line]
    assert log_policy_reject.description == "rejected"
    assert not any("rejected" in line for line in lines)
    assert [line.partition(f"{TRACE}: ")[2].split(" ")[0] for line in lines] == [
        "something",
        "something",
        "Task",
        "something",
    ]


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_line_that_can_not_be_made_is_told_without_what_it_held(
    configured: None, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    configure("INFO", style)
    logging.getLogger("some.library").error("%d", "hunter2")
    line = written(capsys)
    assert "some.library" in line
    assert "line_lost" in line
    assert "hunter2" not in line


def test_a_stream_that_is_gone_is_no_reason_for_another_line(configured: None) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    configure("INFO")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, StderrHandler)
    handler.stream = Gone()
    logging.getLogger("x").error("line")
