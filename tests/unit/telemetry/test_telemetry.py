"""Log lines."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer.consumer import CANCEL_TASKS_BY_DEFAULT  # type: ignore[attr-defined]

from forwarder.telemetry.logs import QUIETED, OneLine, configure


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
    root, warned = logging.getLogger(), logging.getLogger("py.warnings")
    level, handlers, filters = root.level, list(root.handlers), list(warned.filters)
    levels = {name: logging.getLogger(name).level for name in QUIETED}
    switches, source = (logging.logThreads, logging.logMultiprocessing), logging._srcfile
    configure("INFO")
    yield
    root.setLevel(level)
    root.handlers[:], warned.filters[:] = handlers, filters
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
