"""How the worker writes its log on standard error: one line an event, ``name key=value`` or a JSON object."""

from __future__ import annotations

import logging
import logging.config
import sys
import warnings
from typing import Any

from forwarder.forwarding.record import CURRENT
from forwarder.telemetry.foreign_lines import exception_text, without_quotes
from forwarder.telemetry.json_lines import JsonLines, trace_fields
from forwarder.telemetry.native import unpatched
from forwarder.telemetry.uncaught import log_uncaught

log = logging.getLogger(__name__)

#: Loggers whose lines come once per task or more often, most of them with parts of
#: the payload or the response at INFO or DEBUG. The worker writes its own line per task.
QUIETED = (
    "celery.pool",
    "celery.app.trace",
    "celery.worker.strategy",
    "celery.worker.request",
    "botocore",
    "boto3",
    "s3transfer",
    "urllib3",
)

#: billiard's, the prefork pool's: it passes nothing on to the root logger. It tells of a killed child.
POOLS_OWN = "multiprocessing"


class OneLine(logging.Formatter):
    """A formatter for which a message is one line, whatever a sender put into a task's id."""

    #: The second that was written last, and how: at hundreds of lines a second it is seldom another.
    _second: tuple[int | None, str] = (None, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's own
        """Return the record's second as text; the format adds the milliseconds."""
        second, text = self._second
        if second != int(record.created):
            text = super().formatTime(record, datefmt)
            self._second = (int(record.created), text)
        return text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the line with its control characters escaped; a traceback still follows below.

        Whose task it is, and of which trace, stands at its end where the line does not tell.
        """
        text = super().formatMessage(record)
        task = CURRENT.get()
        if task is not None and " task_id=" not in text:
            text += f" task_id={task.task_id} queue={task.queue}"
        for name, value in trace_fields(record):
            text += f" {name}={value}"
        return text if text.isprintable() else "".join(map(_visible, text))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's own name
        """Return where it was raised, without the texts of exceptions, which may quote."""
        return exception_text(ei)


class StderrHandler(logging.StreamHandler[Any]):
    """logging's own, with a lock of the system's own, also under gevent.

    Native threads write lines, too. A lock of greenlets for which two of them wait may never
    wake either (gevent 26.9): then every greenlet that has a line to write stands still for
    good. No greenlet gives way while it writes one, so the system's lock is held for no longer.
    """

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Make the lock, and have it made anew in a child that is forked while it is held."""
        super().createLock()
        self.lock = unpatched("_thread", "RLock")()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Tell of a line that can't be made; logging's own prints its arguments, which may quote."""
        exc_info = sys.exc_info()
        if record.name != __name__ and not isinstance(exc_info[1], OSError):  # that is the stream's
            log.error("line_lost source=%s", record.name, exc_info=exc_info)


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _concerns_this_version(record: logging.LogRecord) -> bool:
    """Return False for what Celery announces, at each lost connection, for a later version of itself."""
    return "CPendingDeprecationWarning" not in record.getMessage()


def _is_no_rejection(record: logging.LogRecord) -> bool:
    """Return False where Celery warns, with a traceback, of a task that goes back: our line tells it."""
    return not (isinstance(record.args, dict) and record.args.get("description") == "rejected")


def _take_ddtraces_handler_off() -> None:
    """Leave ddtrace's lines to our handler: under ``ddtrace-run`` it also writes them itself, unformatted."""
    logger = logging.getLogger("ddtrace")
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:  # not the file that DD_TRACE_LOG_FILE names
            logger.removeHandler(handler)


def configure(level: str, style: str = "console") -> None:
    """Set the root logger up. Called once a process, before Celery starts.

    Records are made without their thread, under gevent a new one for each greenlet
    that logs, without multiprocessing's name for the process and without the line that
    logs: no format of ours shows them.
    https://docs.python.org/3/howto/logging.html#optimization
    """
    logging.logThreads = logging.logMultiprocessing = False
    logging._srcfile = None  # the page's own words
    logging._lock = unpatched("_thread", "RLock")()  # type: ignore[attr-defined]  # see StderrHandler
    logging.warnings = warnings  # type: ignore[attr-defined]  # ddtrace-run loads it anew, after logging
    logging.captureWarnings(True)
    _take_ddtraces_handler_off()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {"()": JsonLines},
                "console": {
                    "()": OneLine,
                    "format": "%(asctime)s.%(msecs)03d %(levelname)s %(process)d %(name)s: %(message)s",
                    "datefmt": "%Y-%m-%dT%H:%M:%S",
                },
            },
            "filters": {
                "version": {"()": lambda: _concerns_this_version},
                "rejections": {"()": lambda: _is_no_rejection},
                "quotes": {"()": lambda: without_quotes},
            },
            "handlers": {"stderr": {"()": StderrHandler, "formatter": style, "filters": ["quotes"]}},
            "root": {"level": level, "handlers": ["stderr"]},
            "loggers": {
                **{name: {"level": "WARNING"} for name in QUIETED},
                "celery.app.trace": {"level": "WARNING", "filters": ["rejections"]},
                POOLS_OWN: {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
                "py.warnings": {"filters": ["version"]},
            },
        }
    )
    log_uncaught()
