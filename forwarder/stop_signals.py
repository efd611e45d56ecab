"""The signals that stop the worker, and their end."""

from __future__ import annotations

import signal

#: Celery restarts on SIGHUP, with an unbounded wait; whoever keeps the worker running starts it anew.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def ignore_stop_signals() -> None:
    """Let no further signal change the exit code of a worker that has stopped; call it in the main thread.

    Before Python clears its modules, which takes part of a second, it gives signals that have a
    handler their default action back: a second SIGTERM then ends the process with -15.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
