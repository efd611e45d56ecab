"""Whether a failed try is tried again, and when: pure decisions, no IO.

A try that failed because the inference server was busy or gone waits in its
slot with jittered backoff: the server belongs to this worker, so a slot that
waits is exactly the pressure that keeps the worker from taking more. When the
wait passes the slot's budget, the task goes back to the queue, where another
worker may have a server that answers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from forwarder.backoff import Backoff
from forwarder.forwarding.errors import ForwarderError, InferenceBusy, InferenceUnreachable

#: Between zero and the bound ("full jitter"): a crowd that waits for one server spreads out.
BACKOFF = Backoff(base_s=0.25, max_s=15.0, least_share=0.0)


class Action(enum.Enum):
    """What to do with a failed try."""

    WAIT = "wait"  # try again in this slot after a wait
    GO_BACK = "go_back"  # hand the task back to the queue
    FAIL = "fail"  # store the error as the task's result


@dataclass(frozen=True, slots=True)
class Decision:
    """The action, and how many seconds to wait in the slot before it (0 for FAIL)."""

    action: Action
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the retries.

    ``slot_budget_s``: longest time that one delivery spends waiting.
    ``max_retries``: how often a task goes back to the queue before it fails.
    """

    slot_budget_s: float = 60.0
    max_retries: int = 30

    def decide(
        self,
        error: ForwarderError,
        *,
        attempt: int,
        waited_s: float,
        retries: int,
        uniform: Callable[[float, float], float],
    ) -> Decision:
        """Decide about the ``attempt``-th failed try (from 0) of this delivery.

        ``waited_s`` is what this delivery has waited so far, ``retries`` how
        often the task went back before (Celery's header). ``uniform(a, b)``
        draws the jitter.
        """
        if not isinstance(error, (InferenceBusy, InferenceUnreachable)):
            return Decision(Action.FAIL)
        wait_s = BACKOFF.wait_s(attempt + 1, uniform)
        if isinstance(error, InferenceBusy) and error.retry_after_s is not None:
            # The server said when; the jitter on top keeps a crowd from returning as one.
            wait_s += error.retry_after_s
        left_s = max(0.0, self.slot_budget_s - waited_s)
        if wait_s <= left_s:
            return Decision(Action.WAIT, wait_s)
        if retries < self.max_retries:
            # The rest of the budget is waited out first: a task that went back at
            # once would be delivered again at once and burn its retries in a second.
            return Decision(Action.GO_BACK, left_s)
        return Decision(Action.FAIL)
