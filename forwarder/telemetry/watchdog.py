"""Says in the log when the worker stops to live, and where it stands: while nothing else can run."""

from __future__ import annotations

import itertools
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from forwarder.telemetry.native import start_native, unpatched

log = logging.getLogger(__name__)

#: Seconds between two looks.
ROUND_S = 5.0
#: Frames of the main thread that are shown.
FRAMES_MAX = 8
STDERR = 2


class Watchdog:
    """Looks at ``reasons`` (why the worker is not alive) from a native thread.

    Its lines go past logging's handlers: what is stuck may hold their locks, or wait
    for the log's reader. A line that would block is dropped.
    """

    def __init__(self, *, reasons: Callable[[], tuple[str, ...]], output: int = STDERR) -> None:
        self._reasons = reasons
        self._output = output
        self._said: tuple[str, ...] = ()
        self._main_thread: int = unpatched("_thread", "get_ident")()
        self._sleep: Callable[[float], None] = unpatched("time", "sleep")

    def start(self) -> None:
        """Begin to look, for the life of the process; call it in the main thread."""
        start_native(self._run)

    def look(self) -> None:
        """Look once, and say what has changed. Does not block."""
        reasons = self._reasons()
        if reasons == self._said:
            return
        self._said = reasons
        if reasons:
            self._say(logging.ERROR, "not_live reasons=%s at=%r", ",".join(reasons), self._where())
        else:
            self._say(logging.INFO, "live_again")

    def _run(self) -> None:
        while True:
            self._sleep(ROUND_S)
            self.look()

    def _where(self) -> str:
        """Return where the main thread is: file, line and function, the innermost first."""
        frame = sys._current_frames().get(self._main_thread)
        stack = itertools.islice(traceback.walk_stack(frame), FRAMES_MAX) if frame else ()
        return " < ".join(
            f"{Path(at.f_code.co_filename).name}:{line} {at.f_code.co_name}" for at, line in stack
        )

    def _say(self, level: int, message: str, *args: object) -> None:
        handlers = logging.root.handlers
        if not handlers or not log.isEnabledFor(level):
            return
        record = log.makeRecord(log.name, level, "", 0, message, args, None)
        poll = unpatched("select", "poll")()
        poll.register(self._output, select.POLLOUT)
        if poll.poll(0):
            line = handlers[0].format(record).encode()
            os.write(self._output, line[: select.PIPE_BUF - 1] + b"\n")
