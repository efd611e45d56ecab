"""Our worker with one guarantee taken out, to show that a scenario notices.

For the scenarios in which a stock worker holds as well. Run it as
``python -m tests.faults.sabotages``, with the sabotage's name in the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

NAME = "FAULTS_SABOTAGE"


def acks_at_the_start() -> None:
    """Ack a task as soon as a slot takes it, as Celery does by default (``task_acks_late``)."""
    from forwarder.brokers.request import ForwardRequest

    accepted = ForwardRequest.on_accepted

    def on_accepted(request: ForwardRequest, pid: Any, time_accepted: float) -> None:
        accepted(request, pid, time_accepted)
        request.acknowledge()

    _replace(ForwardRequest, "on_accepted", on_accepted)


def acks_what_a_lost_child_held() -> None:
    """Ack a task whose child died, as Celery does by default (``task_reject_on_worker_lost``)."""
    from forwarder.brokers.request import ForwardRequest

    def reject(request: ForwardRequest, requeue: bool = False) -> None:
        request.acknowledge()

    _replace(ForwardRequest, "reject", reject)


def does_not_wait_for_the_store() -> None:
    """Try once to store a result, and hand the task back when that fails."""
    from forwarder.results.patience import Patience

    _replace(Patience, "insist", lambda patience, step, *, task_id: step())


def drops_what_runs_when_cut_off() -> None:
    """Cancel what runs when the connection to Redis is lost, although its leases outlive that."""
    from forwarder.brokers.redis.leases import RedisLeases

    _replace(RedisLeases, "disconnected", lambda leases, deliveries: list(deliveries))


def ends_when_it_can_not_settle() -> None:
    """End the process at the first ack that the broker doesn't answer, instead of owing it."""
    from forwarder.brokers.leases import LeaseBook

    _replace(LeaseBook, "_owe", lambda book, debts: os._exit(1))


def gives_up_on_the_inference_server() -> None:
    """Fail a task at the first request that the inference server doesn't answer."""
    from forwarder.forwarding.retry import Action, Decision, RetryPolicy

    def decide(policy: RetryPolicy, error: Exception, **_: Any) -> Decision:
        return Decision(Action.FAIL)

    _replace(RetryPolicy, "decide", decide)


SABOTAGES: Mapping[str, Callable[[], None]] = {
    sabotage.__name__: sabotage
    for sabotage in (
        acks_at_the_start,
        acks_what_a_lost_child_held,
        does_not_wait_for_the_store,
        drops_what_runs_when_cut_off,
        ends_when_it_can_not_settle,
        gives_up_on_the_inference_server,
    )
}


def _replace(owner: type, name: str, method: Callable[..., Any]) -> None:
    assert callable(getattr(owner, name)), f"{owner.__name__} has no {name} to take out"
    setattr(owner, name, method)


def main() -> None:
    """Run the worker as ``python -m forwarder`` does, but for what is taken out."""
    from forwarder import pool

    pool.prepare(sys.argv[1:], os.environ)  # first: nothing may be imported before the patch

    SABOTAGES[os.environ[NAME]]()

    from forwarder.cli.main import main as run_command_line

    raise SystemExit(run_command_line())


if __name__ == "__main__":
    main()
