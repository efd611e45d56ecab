"""What nobody catches is a line of the log, without its text, whoever would have printed it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from forwarder.telemetry.uncaught import log_uncaught


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", threading.excepthook)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        patch.delitem(sys.modules, "gevent.hub", raising=False)
        log_uncaught()
        yield


def fail() -> None:
    raise ValueError("hunter2")


class Failing:
    def __del__(self) -> None:
        fail()


def test_a_thread_that_ends_with_an_exception_is_told(caplog: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    [line] = caplog.records
    assert line.getMessage() == "exception_uncaught where=thread error=ValueError"
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None


def test_a_thread_that_ends_itself_is_not(caplog: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert caplog.records == []


def test_an_exception_that_can_not_be_raised_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Failing()
    [line] = caplog.records
    assert line.getMessage() == "exception_uncaught where=finalizer error=ValueError"


UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import threading, gevent
from forwarder.telemetry import logs
logs.configure("INFO", "json")

def fail(*_):
    raise ValueError("hunter2")

class Failing:
    __del__ = fail

gevent.spawn(fail, "hunter2").join()
gevent.get_hub().loop.run_callback(fail, "hunter2")
gevent.sleep(0.01)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Failing()
"""


def test_under_gevent_every_line_is_json_and_without_payload() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_GEVENT], check=True, timeout=60, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["where"] for line in lines] == ["greenlet", "greenlet", "thread", "finalizer"]
    assert {(line["event"], line["error"]) for line in lines} == {("exception_uncaught", "ValueError")}
    assert all(" in fail" in line["exception"] for line in lines)
    assert "hunter2" not in done.stderr
