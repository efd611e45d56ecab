"""Exceptions that nobody catches: a line of the log for each, where Python and gevent print a traceback."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)


def log_uncaught() -> None:
    """Have what ends a thread or a greenlet, and what Python can raise nowhere, told by the log.

    Printed as it is, it is no line of the log's shape, and its text and its greenlet's
    arguments may quote a payload. Call it after gevent has patched the standard library.
    What ends the whole process stays with Python.
    """
    threading.excepthook = _thread_ended
    sys.unraisablehook = _unraisable
    gevent_hub = sys.modules.get("gevent.hub")
    if gevent_hub is not None:
        # gevent has a method to be overridden and no way to say of which class the hubs are that exist.
        gevent_hub.Hub.print_exception = _greenlet_ended


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):  # as Python's own
        _tell("thread", args.exc_type, args.exc_value, args.exc_traceback)


def _unraisable(args: Any) -> None:
    """Tell of an exception in ``__del__``, in a callback of the collector's and the like."""
    _tell("finalizer", args.exc_type, args.exc_value, args.exc_traceback)


def _greenlet_ended(
    _hub: object,
    _context: object,
    kind: type[BaseException],
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    _tell("greenlet", kind, error, trace)


def _tell(
    where: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    exc_info = None if error is None else (kind, error, trace)
    log.error("exception_uncaught where=%s error=%s", where, kind.__name__, exc_info=exc_info)
