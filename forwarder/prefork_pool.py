"""The prefork pool, which hears at once what a child has done, also while it is waited for at the end."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from celery.concurrency.asynpool import AsynPool, ResultHandler
from celery.concurrency.prefork import TaskPool

#: Seconds for one round of looks at all children.
ROUND_S = 0.5


class PromptResults(ResultHandler):
    """Celery's, which pauses half a second at each child that has nothing to say; here it is that for all."""

    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def _flush_outqueue(
        self, fd: int, remove: Callable[[int], Any], process_index: Any, on_state_change: Callable[[Any], Any]
    ) -> Any:
        """Take one message of the child whose pipe this is, if there is one."""
        child = process_index.get(fd)
        if child is not None and not _speaks(child):
            self.sleep(ROUND_S / len(process_index))
            return None
        return super()._flush_outqueue(  # type: ignore[misc]  # the stubs lack it
            fd, remove, process_index, on_state_change
        )


class PromptPool(AsynPool):
    """Celery's, with that."""

    ResultHandler = PromptResults


class PreforkPool(TaskPool):
    """Celery's prefork pool, whose children share with their parent what was there before them.

    And a task that ends while the pool stops is settled then, not after the drain.
    """

    Pool = PromptPool

    def on_start(self) -> None:
        """Fork the children.

        What is there by now is taken out of the garbage collector's rounds first: each writes into every
        object, and every page that is written to is no longer shared
        (https://docs.python.org/3/library/gc.html#gc.freeze).
        """
        gc.collect()
        gc.freeze()
        super().on_start()


def _speaks(child: Any) -> bool:
    try:
        return bool(child.outq._reader.poll(0))
    except OSError:
        return True  # its pipe is broken: that is Celery's to handle
