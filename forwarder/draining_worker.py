"""Celery's worker, whose every way to stop goes through the drain."""

from __future__ import annotations

import logging
from typing import Any

from celery.apps.worker import Worker
from celery.bootsteps import StartStopStep
from celery.platforms import EX_FAILURE, EX_OK

from forwarder.brokers.deliveries import Delivery
from forwarder.drain import Drain

log = logging.getLogger(__name__)


class NoteConsumerStopped(StartStopStep):
    """Tells the drain that the consumer has stopped: of the worker's steps Celery stops it first."""

    requires = ("celery.worker.components:Pool",)  # so this one is stopped before the pool is waited for

    def __init__(self, worker: Any, **options: Any) -> None:
        self._drain: Drain = worker.drain
        super().__init__(worker, **options)

    def stop(self, parent: Any) -> None:
        """Note it."""
        self._drain.consumer_stopped()

    def terminate(self, parent: Any) -> None:
        """Note it, on Celery's other way out."""
        self._drain.consumer_stopped()


class DrainingWorker(Worker):
    """Celery's worker, but every way in which it stops goes through the drain."""

    app: Any
    consumer: Any
    hostname: str
    pool: Any

    class Blueprint(Worker.Blueprint):
        """Celery's steps, and one more."""

        default_steps = Worker.Blueprint.default_steps | {NoteConsumerStopped}

    def __init__(self, *, drain: Drain, **options: Any) -> None:
        self.drain = drain
        super().__init__(**options)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install Celery's signal handlers, then the drain's over them."""
        super().install_platform_tweaks(worker)
        self.drain.install(worker)

    @property
    def consumed(self) -> set[str]:
        """Return the queues that it takes tasks from now: remote control may cancel and add some."""
        consumer = self.consumer.task_consumer
        return set() if consumer is None else {queue.name for queue in consumer.queues}

    def abandon(self, delivery: Delivery) -> None:
        """Kill the running copy of a task, if there is one; settles nothing and never raises."""
        request = delivery.request
        if request is None:
            return
        try:
            request.abandon(self.pool)
        except Exception as error:  # noqa: BLE001 - the others are to be handed back all the same
            log.error("abandon_failed task_id=%s error=%s", delivery.task_id, type(error).__name__)

    # Celery gives a slot to a request here, and keeps the slot when that fails.
    def _process_task(self, req: Any) -> None:
        """Give the request to the pool; one that can't be begun goes back and frees its slot."""
        try:
            super()._process_task(req)  # type: ignore[misc]  # the stubs lack it
        except Exception as error:  # noqa: BLE001 - one message must not cost a slot
            log.error("task_not_begun task_id=%s error=%s", req.id, type(error).__name__)
            req.give_back(error)
            release = getattr(self, "_quick_release", None)  # prefork's count of slots
            if release is not None:
                release()

    def stop(self, in_sighandler: bool = False, exitcode: Any = None) -> None:
        """Stop as after SIGTERM; Celery also stops on a remote command and for what it can't handle."""
        self.drain.begin(exit_code=exitcode if isinstance(exitcode, int) else EX_OK)
        super().stop(in_sighandler=in_sighandler, exitcode=exitcode)

    def terminate(self, in_sighandler: bool = False) -> None:
        """Stop too: Celery terminates when it runs out of file descriptors, but what runs has its own."""
        self.stop(in_sighandler=in_sighandler, exitcode=EX_FAILURE)
