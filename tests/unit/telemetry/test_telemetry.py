"""Log lines and counters."""

from __future__ import annotations

import logging

from forwarder.telemetry.logs import OneLine
from forwarder.telemetry.metrics import ProcessMetrics


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "file.py", 1, message, (), None)


def test_a_message_is_one_line_whatever_it_holds() -> None:
    forged = "task_done task_id=x\n2026-01-01 ERROR all is lost\r\x1b[31m"
    assert OneLine("%(message)s").format(record(forged)) == (
        "task_done task_id=x\\n2026-01-01 ERROR all is lost\\r\\x1b[31m"
    )


def test_an_ordinary_message_stays_as_it_is() -> None:
    assert OneLine("%(levelname)s %(message)s").format(record("größe=5")) == "INFO größe=5"


def test_counters_and_sums_are_kept_by_label() -> None:
    metrics = ProcessMetrics()
    metrics.count("tasks", queue="a")
    metrics.count("tasks", 2, queue="a")
    metrics.observe("seconds", 1.5)
    metrics.observe("seconds", 0.5)
    assert metrics.value("tasks", queue="a") == 3
    assert metrics.value("tasks", queue="b") == 0
    assert metrics.snapshot() == {"tasks{queue=a}": 3, "seconds_count": 2, "seconds_sum": 2.0}
