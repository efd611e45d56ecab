"""What the dashboards show: rows of panels, each a title, a unit, one sentence and its questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.observability.queries import Query, calls, gauge, percentiles, rate

Unit = Literal["s", "bytes", "a second", "number", "yes or no"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart; ``meaning`` says what is good and what is not. ``stacked`` parts add up to a whole."""

    title: str
    unit: Unit
    meaning: str
    queries: tuple[Query, ...]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A question that somebody on call has, and the panels that answer it."""

    title: str
    panels: tuple[Panel, ...]


ROWS = (
    Row(
        "Does it work?",
        (
            Panel(
                "Alive, worst worker",
                "yes or no",
                "0: a worker's /livez is red. It has tasks and finishes none, or it is stuck.",
                (gauge("forwarder_live", take="min", legend="alive"),),
            ),
            Panel(
                "Broker, inference server and result store reached, worst worker",
                "yes or no",
                "0: at its last look a worker did not reach it, or was refused. It waits, and stays alive.",
                (gauge("forwarder_dependency_up", "dependency", take="min"),),
            ),
            Panel(
                "Workers",
                "number",
                "Those that report, by version: 0 is right where the deployment scales to zero.",
                (gauge("forwarder_info", "version", "pool", "broker"),),
                stacked=True,
            ),
            Panel(
                "How late the consumer's loop turns",
                "s",
                "Beyond some seconds something blocks the worker: it takes no task and renews no lease.",
                (gauge("forwarder_loop_lag_seconds", "instance", take="max"),),
            ),
        ),
    ),
    Row(
        "Traffic and outcome",
        (
            Panel(
                "Tasks that ended",
                "a second",
                "By outcome: success, the code of a failure, revoked, or requeued.",
                (rate("forwarder_tasks_total", "outcome"),),
                stacked=True,
            ),
            Panel(
                "Tasks that failed",
                "a second",
                "By code and queue; an error status of the inference server is no failure, but an answer.",
                (
                    rate(
                        "forwarder_tasks_total",
                        "outcome",
                        "queue",
                        where=("outcome", "!", ("success", "requeued", "revoked")),
                    ),
                ),
            ),
            Panel(
                "Answers of the inference server",
                "a second",
                "By HTTP status. 429, 503 and 529 are busy, and asked again.",
                (calls("forwarder_inference_seconds", "status"),),
                stacked=True,
            ),
        ),
    ),
    Row(
        "How long it takes",
        (
            Panel(
                "A task, from its arrival to its stored result",
                "s",
                "What its sender waits for, the queue included; of tasks that carry their arrival.",
                percentiles("forwarder_task_seconds"),
            ),
            Panel(
                "A call of the inference server",
                "s",
                "Where this is close to the panel beside it, the time is the model's, not the queue's.",
                percentiles("forwarder_inference_seconds"),
            ),
            Panel(
                "A task, 95 of 100, by queue",
                "s",
                "A queue that is slower than the others wants workers of its own.",
                percentiles("forwarder_task_seconds", "queue")[1:2],
            ),
        ),
    ),
    Row(
        "Is there enough of it?",
        (
            Panel(
                "Messages that wait",
                "number",
                "By queue, what is in flight not counted. Every worker tells the same: the highest counts.",
                (gauge("forwarder_queue_depth", "queue", take="max"),),
            ),
            Panel(
                "Age of the next message",
                "s",
                "How far behind the workers are. Only where the broker or the message tells.",
                (gauge("forwarder_queue_oldest_seconds", "queue", take="max"),),
            ),
            Panel(
                "In flight, and how many may be",
                "number",
                "In flight at the limit with messages waiting: more workers, or a faster model.",
                (
                    gauge("forwarder_inflight", legend="in flight"),
                    gauge("forwarder_concurrency_limit", legend="limit"),
                ),
            ),
            Panel(
                "The pool",
                "number",
                "Slots (gevent) or processes (prefork), busy and idle.",
                (gauge("forwarder_pool_size", "state"),),
                stacked=True,
            ),
            Panel(
                "Decisions of the autoscaler",
                "a second",
                "Of the prefork pool. memory_above_high: it would be larger if there were memory.",
                (rate("forwarder_autoscale_decisions_total", "action", "reason"),),
            ),
        ),
    ),
    Row(
        "Deliveries",
        (
            Panel(
                "Messages taken up",
                "a second",
                "First deliveries are the work. Redelivered: somebody died, lost its lease or gave it back.",
                (rate("forwarder_deliveries_total", "kind"),),
            ),
            Panel(
                "Put aside, into the dead letters",
                "a second",
                "Given up or refused, by queue; anything above 0 wants a person: `forwarder dead list`.",
                (rate("forwarder_deliveries_total", "queue", where=("kind", "=", ("dead",))),),
            ),
        ),
    ),
    Row(
        "Hooks and AWS",
        (
            Panel(
                "Hooks that ran",
                "a second",
                "A failed hook changes no task's result; nobody runs it again.",
                (rate("forwarder_hook_total", "hook", "outcome"),),
            ),
            Panel(
                "Tasks whose hook waits or runs",
                "number",
                "They hold slots: near the limit, the hook's receiver is what limits the worker.",
                (gauge("forwarder_hook_backlog", "hook"),),
            ),
            Panel(
                "Requests to AWS",
                "a second",
                "Each try counts. This is what AWS bills and throttles.",
                (rate("forwarder_aws_calls_total", "service", "operation"),),
            ),
            Panel(
                "AWS clients built",
                "a second",
                "One a service and process, and one more as credentials run out: a steady rate is a leak.",
                (rate("forwarder_aws_client_builds_total", "service"),),
            ),
        ),
    ),
    Row(
        "Memory",
        (
            Panel(
                "Used, by worker",
                "bytes",
                "Of the container, as the kernel counts it before it kills.",
                (gauge("forwarder_memory_bytes", "instance", take="max", where=("kind", "=", ("used",))),),
            ),
            Panel(
                "Used, and the limit: highest worker",
                "bytes",
                "Above 70 % it holds back (gevent, or with --autoscale); at the limit the kernel kills it.",
                (gauge("forwarder_memory_bytes", "kind", take="max"),),
            ),
        ),
    ),
)
