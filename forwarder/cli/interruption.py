"""How a command that has started services ends early."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Not KeyboardInterrupt itself: where that meets an ``exec`` of a text, as of a class that is being
    made, Python ends by SIGINT under ``-m``, also when it was handled (run_eval_code_obj in pythonrun.c).
    """


class Interruption:
    """Ends the run as Ctrl-C does, so that everything that was started is stopped.

    What is raised in a destructor or a callback, where a signal may find the
    program, is swallowed there; so it is raised again where the run goes on.
    Make it in the main thread: it takes the signals.
    """

    def __init__(self) -> None:
        self._told = False
        for number in SIGNALS:
            signal.signal(number, self.tell)

    def tell(self, number: int, frame: FrameType | None) -> NoReturn:
        """Take a signal."""
        self._told = True
        raise Interrupted

    def go_on(self) -> None:
        """Raise KeyboardInterrupt when a signal came."""
        if self._told:
            raise Interrupted
