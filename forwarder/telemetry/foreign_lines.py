"""What libraries log, without what it may quote: arguments, results and the texts of exceptions."""

from __future__ import annotations

import logging
import traceback
from typing import Any

#: In the place of what is not written.
HIDDEN = "(...)"

#: Keys of Celery's own lines under which a task's payload, result or error may stand: ``celery.app.trace``.
QUOTING = frozenset({"args", "kwargs", "return_value", "exc", "traceback", "description"})

#: Errors whose texts tell of connections and never quote, beside the system's own: by module and class.
TELLING = frozenset(
    {
        ("redis.exceptions", "ConnectionError"),
        ("redis.exceptions", "TimeoutError"),
        ("amqp.exceptions", "AMQPError"),
    }
)

#: How Celery begins what it warns of with an error's repr: ``celery.app.trace.report_internal_error``.
OUTSIDE_BODY = "Exception raised outside body"

#: Exceptions of a chain that are written at most.
CHAIN_MAX = 10


def without_quotes(record: logging.LogRecord) -> bool:
    """Take out of a library's record what may quote a payload. A logging filter: lets every record pass.

    Celery gives its lines about a task a dictionary with the task's arguments, result and
    error; others name an exception, whose text may quote what it failed over. What is left
    is who, where, and the exception's class.
    """
    args: Any = record.args
    if record.name == "py.warnings":  # Python's own way: the text is the whole message, without arguments
        before, found, _ = record.getMessage().partition(OUTSIDE_BODY)
        if found:
            record.msg, record.args = before + found, ()
        return True
    if record.name.startswith("forwarder") or not args:
        return True
    if isinstance(args, dict):
        record.args = {key: HIDDEN if key in QUOTING else _named(value) for key, value in args.items()}
    else:
        record.args = tuple(map(_named, args))
    return True


def _named(value: Any) -> Any:
    return _Named(value) if isinstance(value, BaseException) else value


class _Named:
    """Stands in for an exception."""

    def __init__(self, error: BaseException) -> None:
        self._text = describe(error)

    def __repr__(self) -> str:
        return self._text


def describe(error: BaseException) -> str:
    """Return the class of an error, and its text where that never quotes."""
    kinds = {(kind.__module__, kind.__qualname__) for kind in type(error).__mro__}
    if isinstance(error, OSError) or kinds & TELLING:
        return f"{type(error).__name__} ({error})"
    return type(error).__name__


def exception_text(exc_info: Any) -> str:
    """Return where an exception and those beneath it were raised, newest last, without their texts."""
    error = exc_info[1] if isinstance(exc_info, tuple) else None
    parts: list[str] = []
    while isinstance(error, BaseException) and len(parts) < CHAIN_MAX:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        parts.append("\n".join([*places, describe(error)]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\n".join(reversed(parts))
