"""How the worker writes its log: one line an event, ``name key=value``, on standard error."""

from __future__ import annotations

import logging
import logging.config

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
        """Return the line with its control characters escaped; a traceback still follows below."""
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _concerns_this_version(record: logging.LogRecord) -> bool:
    """Return False for what Celery announces, at each lost connection, for a later version of itself."""
    return "CPendingDeprecationWarning" not in record.getMessage()


def configure(level: str) -> None:
    """Set the root logger up. Called once a process, before Celery starts.

    Records are made without their thread, under gevent a new one for each greenlet
    that logs, without multiprocessing's name for the process and without the line that
    logs: no format of ours shows them.
    https://docs.python.org/3/howto/logging.html#optimization
    """
    logging.logThreads = logging.logMultiprocessing = False
    logging._srcfile = None  # the page's own words
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": OneLine,
                    "format": "%(asctime)s.%(msecs)03d %(levelname)s %(process)d %(name)s: %(message)s",
                    "datefmt": "%Y-%m-%dT%H:%M:%S",
                }
            },
            "filters": {"version": {"()": lambda: _concerns_this_version}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level, "handlers": ["stderr"]},
            "loggers": {
                **{name: {"level": "WARNING"} for name in QUIETED},
                "py.warnings": {"filters": ["version"]},
            },
        }
    )
