"""The gevent pool, with an end for every task: stock, a broken one keeps its slot, a killed one is acked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.gevent import TaskPool
from celery.exceptions import Reject, WorkerShutdown, WorkerTerminate
from greenlet import GreenletExit, getcurrent  # type: ignore[import-untyped]

log = logging.getLogger(__name__)


class GreenPool(TaskPool):
    """Celery's gevent pool, which calls ``error_callback`` as the prefork pool does.

    Celery's time limits are left out: the worker's own deadlines bound a task.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        from gevent import spawn_raw

        super().__init__(*args, **options)
        # How Celery starts its remote control, and nothing else.
        self.spawn_n = partial(spawn_raw, _end_in_one_line)

    def on_apply(  # type: ignore[override]  # Celery passes the callbacks by name
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        callback: Callable[[Any], Any],
        error_callback: Callable[[Any], Any],
        accept_callback: Callable[[int, float], Any],
        **_: Any,
    ) -> Any:
        """Run the target in a greenlet and return that; blocks while every slot is taken.

        ``callback`` gets what the target returned, or else ``error_callback`` an
        ExceptionInfo, also when ``callback`` itself raised. For a greenlet that was
        killed neither is called: its killer says what becomes of the task.
        """

        def run(*_: Any, **__: Any) -> None:
            try:
                accept_callback(id(getcurrent()), time.monotonic())
                callback(target(*args, **(kwargs or {})))
            except (GreenletExit, WorkerShutdown, WorkerTerminate):
                raise
            except Reject:  # the task goes back to its queue
                error_callback(ExceptionInfo())
            except BaseException as error:  # noqa: BLE001 - gevent.Timeout too ends a task, not its slot
                log.error("task_greenlet_failed error=%s", type(error).__name__)
                error_callback(ExceptionInfo())

        # Stock would call the target through a wrapper that makes a success of a killed task.
        return super().on_apply(target, apply_target=run)


def _end_in_one_line(run: Callable[..., Any], *args: Any) -> None:
    """Run it; gevent would print a traceback when it ends with its connection, as it does at each loss."""
    try:
        run(*args)
    except Exception as error:  # noqa: BLE001 - it is started anew with the consumer's connection
        log.warning("remote_control_lost error=%s", type(error).__name__)
