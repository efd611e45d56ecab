"""Libraries' lines, as they log them, without payloads, results and the texts of exceptions."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import AccessRefused
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app import trace
from celery.worker.consumer import consumer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from forwarder.telemetry.foreign_lines import describe, exception_text, without_quotes
from forwarder.telemetry.json_lines import JsonLines
from forwarder.telemetry.logs import OneLine

SECRET = "payload-text"


@pytest.fixture(params=["console", "json"])
def log(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    """What libraries write, at every level, through the worker's formatters and its filter."""
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines() if request.param == "json" else OneLine("%(name)s %(message)s"))
    handler.addFilter(without_quotes)
    loggers = [logging.getLogger(name) for name in ("celery", "kombu", "py.warnings")]
    before = [(each, each.level) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    yield written
    for each, level in before:
        each.removeHandler(handler)
        each.setLevel(level)


def a_task() -> Any:
    app = Celery("test", set_as_current=False)

    @app.task(name="a.task", shared=False)
    def nothing() -> None:
        """Do nothing."""

    return app.tasks["a.task"]


def request_of() -> Any:
    return SimpleNamespace(
        id="t-1", hostname="h", args=[SECRET], kwargs={"k": SECRET}, task=None, get=lambda name: None
    )


def test_celerys_line_of_an_unexpected_failure_tells_neither_its_arguments_nor_the_error(
    log: StringIO,
) -> None:
    task = a_task()
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        failed: Any = trace.TraceInfo("FAILURE", error)
        failed._log_error(task, request_of(), ExceptionInfo())
    assert "a.task[t-1]" in log.getvalue()
    assert "ValueError" in log.getvalue()
    assert SECRET not in log.getvalue()


@pytest.mark.parametrize("line", [trace.LOG_SUCCESS, trace.LOG_RETRY, trace.LOG_FAILURE, trace.LOG_RECEIVED])
def test_celerys_lines_about_a_task_tell_who_and_not_what(line: str, log: StringIO) -> None:
    quoting = dict.fromkeys(("args", "kwargs", "return_value", "exc", "traceback", "description"), SECRET)
    context = {"id": "t-1", "name": "a.task", "runtime": 1.0, "hostname": "h", "eta": None, **quoting}
    logging.getLogger("celery.app.trace").error(line, context)
    assert "t-1" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_an_exception_among_a_lines_values_is_told_by_its_class(log: StringIO) -> None:
    logging.getLogger("celery.worker.request").error("Task handler raised error: %r", KeyError(SECRET))
    assert "Task handler raised error: KeyError" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_why_a_connection_failed_is_told(log: StringIO) -> None:
    refused = RedisConnectionError("Error 111 connecting to 127.0.0.1:6379. Connection refused.")
    consumer.error(consumer.CONNECTION_ERROR, "redis://", refused, "Trying again")  # type: ignore[attr-defined]
    assert "Connection refused" in log.getvalue()


def test_what_celery_warns_of_with_an_error_ends_before_it(log: StringIO) -> None:
    task = a_task()
    task.backend.prepare_exception = lambda error, serializer=None: error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            trace.report_internal_error(task, error)
    [warned] = caught
    assert SECRET in str(warned.message)  # else Celery has changed, and the rule can go
    logging.captureWarnings(True)
    try:
        warnings.showwarning(warned.message, warned.category, warned.filename, warned.lineno)
    finally:
        logging.captureWarnings(False)
    assert "Exception raised outside body" in log.getvalue()
    assert SECRET not in log.getvalue()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(SECRET), "ValueError"),
        (ResponseError(f"unknown command with args beginning with: {SECRET}"), "ResponseError"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (AccessRefused("no access to queue 'q'"), "no access to queue 'q'"),
    ],
)
def test_the_text_of_an_error_is_told_where_it_never_quotes(error: Exception, told: str) -> None:
    assert told in describe(error)
    assert SECRET not in describe(error)


def test_a_chain_of_exceptions_is_told_from_the_first_to_the_last() -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(SECRET) from cause
    except ValueError:
        text = exception_text(sys.exc_info())
    assert text.index("KeyError") < text.index("ValueError")
    assert SECRET not in text


def test_a_chain_that_goes_round_has_an_end() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert exception_text((ValueError, first, None)).count("ValueError") == 5


def test_our_own_lines_are_left_alone() -> None:
    record = logging.LogRecord("forwarder.x", logging.INFO, "f", 1, "x %s", (ValueError("told"),), None)
    assert without_quotes(record)
    assert record.getMessage() == "x told"
