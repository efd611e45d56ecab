"""Runs every hook for a finished task; a hook's failure stays its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from forwarder.forwarding.ports import Completion, Hook, Metrics
from forwarder.forwarding.record import step
from forwarder.hooks.errors import HookError

log = logging.getLogger(__name__)


class HookRunner:
    """Runs the hooks one after the other, in the order in which they were given."""

    def __init__(self, *, hooks: Sequence[Hook], metrics: Metrics) -> None:
        self._hooks = tuple(hooks)
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<HookRunner {','.join(hook.name for hook in self._hooks) or 'no hooks'}>"

    def run(self, completion: Completion) -> None:
        """Deliver to every hook. Blocks until the last is done.

        No Exception comes out: each failed hook is logged and counted, and the
        next one runs. What ends the greenlet or the process (GreenletExit, a
        time limit of gevent's, SystemExit) is no Exception and passes through.
        """
        owed = [hook.name for hook in self._hooks]
        for name in owed:
            self._metrics.change("forwarder_hook_backlog", 1, hook=name)
        try:
            for hook in self._hooks:
                self._run(hook, completion)
                self._metrics.change("forwarder_hook_backlog", -1, hook=owed.pop(0))
        finally:
            for name in owed:
                self._metrics.change("forwarder_hook_backlog", -1, hook=name)

    def _run(self, hook: Hook, completion: Completion) -> None:
        try:
            with step("hook", hook.name):
                outcome = "ok" if hook.deliver(completion) else "skipped"
        except Exception as error:  # noqa: BLE001 - a hook never changes a task's result
            outcome = "failed"
            log.warning(
                "hook_failed task_id=%r hook=%s error=%s", completion.task_id, hook.name, _describe(error)
            )
        self._metrics.count("forwarder_hook_total", hook=hook.name, outcome=outcome)

    def close(self) -> None:
        """Close every hook, whatever the others do."""
        for hook in self._hooks:
            try:
                hook.close()
            except Exception as error:  # noqa: BLE001 - the others are to be closed all the same
                log.warning("hook_close_failed hook=%s error=%s", hook.name, _describe(error))


def _describe(error: Exception) -> str:
    # Only our own messages are known to hold no payload text.
    name = type(error).__name__
    return f"{name} ({error})" if isinstance(error, HookError) else name
