"""The gevent pool, with an end for every task: stock, a broken one keeps its slot, a killed one is acked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.gevent import TaskPool
from celery.exceptions import Reject, WorkerShutdown, WorkerTerminate
from greenlet import GreenletExit  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from forwarder.green_slots import Job, Slots

log = logging.getLogger(__name__)


class GreenPool(TaskPool):
    """Celery's gevent pool, which calls ``error_callback`` as the prefork pool does, in slots that stay.

    Celery's time limits are left out: the worker's own deadlines bound a task.
    """

    _pool: Slots

    def __init__(self, *args: Any, **options: Any) -> None:
        from gevent import spawn_raw

        super().__init__(*args, **options)
        # How Celery starts its remote control, and nothing else.
        self.spawn_n = partial(spawn_raw, _end_in_one_line)
        #: Called in a slot once its task is over, with whatever it held.
        self.slot_is_empty: Callable[[], object] = self.app.conf.forwarder_slot_is_empty

    def on_start(self) -> None:
        """Make the slots, in the place of gevent's pool."""
        from forwarder.green_slots import Slots

        self._pool = Slots(self.limit)

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
        """Run the target in a slot, return the job; blocks while twice as many as slots are not over.

        ``callback`` gets what the target returned, or else ``error_callback`` an
        ExceptionInfo, also when ``callback`` itself raised. For a job that was
        killed neither is called: its killer says what becomes of the task.
        """

        def run(job: Job) -> None:
            try:
                with self._pool.running:
                    accept_callback(job.number, time.monotonic())
                    if job.killed:  # its message became somebody else's while it waited to run
                        return
                    try:
                        returned = target(*args, **(kwargs or {}))
                    finally:
                        self.slot_is_empty()  # before the ack, which asks for the next message
                callback(returned)
            except (GreenletExit, WorkerShutdown, WorkerTerminate):
                raise
            except Reject:  # the task goes back to its queue
                error_callback(ExceptionInfo())
            except BaseException as error:  # noqa: BLE001 - gevent.Timeout too ends a task, not its slot
                log.error("task_greenlet_failed error=%s", type(error).__name__)
                error_callback(ExceptionInfo())

        return self._pool.start(run)

    def grow(self, n: int = 1) -> None:
        """Let ``n`` more run, as remote control asks."""
        super().grow(n)
        for _ in range(n):
            self._pool.running.release()

    def shrink(self, n: int = 1) -> None:
        """Let ``n`` less run, once as many have ended."""
        super().shrink(n)
        self._pool.running.counter -= n

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End a job where it waits, or before it begins; does nothing once it is over."""
        self._pool.kill(pid)


def _end_in_one_line(run: Callable[..., Any], *args: Any) -> None:
    """Run it; gevent would print a traceback when it ends with its connection, as it does at each loss."""
    try:
        run(*args)
    except Exception as error:  # noqa: BLE001 - it is started anew with the consumer's connection
        log.warning("remote_control_lost error=%s", type(error).__name__)
