"""The alerts, each for Prometheus and for Datadog, and where the runbook tells what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Workers of one deployment: what tells deployments apart, where Prometheus has it.
SCOPE = "namespace, job"
FAILED = 'outcome!~"success|requeued|revoked"'
MONITOR_FAILED = "!outcome:success,!outcome:requeued,!outcome:revoked"
#: Errors that are a task's answer: 503 and 529 are busy, and asked again.
ANSWERED_5XX = 'status=~"5..", status!~"503|529"'
MONITOR_5XX = "status:5*,!status:503,!status:529"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert. ``datadog`` holds its own window and threshold; ``held`` is Prometheus' `for`."""

    name: str
    title: str
    severity: Literal["critical", "warning"]
    entry: str
    held: str
    prometheus: str
    datadog: str
    advice: str

    def runbook_url(self, runbook: str) -> str:
        """Return where the runbook tells what to do."""
        return f"{runbook}#{self.entry}"


ALERTS = (
    Alert(
        name="ForwarderNotLive",
        title="A worker is stuck",
        severity="critical",
        entry="a-worker-is-stuck",
        held="2m",
        prometheus="forwarder_live == 0",
        datadog="max(last_5m):min:forwarder.live{*} by {host} < 1",
        advice="/livez is red, and whoever probes it should have restarted the worker by now.",
    ),
    Alert(
        name="ForwarderLoopLate",
        title="A worker's loop turns late",
        severity="warning",
        entry="the-loop-turns-late",
        held="5m",
        prometheus="forwarder_loop_lag_seconds > 5",
        datadog="min(last_5m):max:forwarder.loop_lag_seconds{*} by {host} > 5",
        advice="Something blocks it: it takes tasks late and may renew its leases too late.",
    ),
    Alert(
        name="ForwarderBrokerAway",
        title="The broker is away",
        severity="critical",
        entry="the-broker-is-away",
        held="2m",
        prometheus='forwarder_dependency_up{dependency="broker"} == 0',
        datadog="max(last_5m):min:forwarder.dependency_up{dependency:broker} by {host} < 1",
        advice="A worker can't reach its broker, or is refused: it takes no task, and its acks may wait.",
    ),
    Alert(
        name="ForwarderInferenceAway",
        title="The inference server is away",
        severity="critical",
        entry="the-inference-server-is-away",
        held="10m",  # a large model takes minutes to load
        prometheus='forwarder_dependency_up{dependency="inference"} == 0',
        datadog="max(last_10m):min:forwarder.dependency_up{dependency:inference} by {host} < 1",
        advice="The server beside this worker is not ready; its tasks wait, and go back after a while.",
    ),
    Alert(
        name="ForwarderResultsAway",
        title="The result store is away",
        severity="critical",
        entry="the-result-store-is-away",
        held="2m",
        prometheus='forwarder_dependency_up{dependency="results"} == 0',
        datadog="max(last_5m):min:forwarder.dependency_up{dependency:results} by {host} < 1",
        advice="A worker can't use its result store: its tasks wait in their slots, and then go back.",
    ),
    Alert(
        name="ForwarderNothingFinishes",
        title="Messages wait and nothing finishes",
        severity="critical",
        entry="messages-wait-and-nothing-finishes",
        held="10m",
        prometheus=(
            f"max by ({SCOPE}, queue) (forwarder_queue_depth) > 0"
            f" unless on ({SCOPE}, queue) sum by ({SCOPE}, queue) (increase("
            'forwarder_tasks_total{outcome!="requeued"}[10m])) > 0'
        ),
        datadog=(
            "min(last_15m):max:forwarder.queue_depth{*} by {service,queue} - 1000000"
            " * default_zero(sum:forwarder.tasks{!outcome:requeued} by {service,queue}.as_count()) > 0"
        ),
        advice="For ten minutes no task of this queue has ended although some wait.",
    ),
    Alert(
        name="ForwarderQueueLate",
        title="The queue is late",
        severity="warning",
        entry="the-queue-grows",
        held="10m",
        prometheus=f"max by ({SCOPE}, queue) (forwarder_queue_oldest_seconds) > 900",
        datadog="min(last_10m):max:forwarder.queue_oldest_seconds{*} by {service,queue} > 900",
        advice="The next message has waited for a quarter of an hour.",
    ),
    Alert(
        name="ForwarderQueueGrows",
        title="The queue grows",
        severity="warning",
        entry="the-queue-grows",
        held="10m",
        prometheus=(
            f"max by ({SCOPE}, queue) (forwarder_queue_depth)"
            f" - max by ({SCOPE}, queue) (forwarder_queue_depth offset 30m) > 100"
        ),
        datadog="change(avg(last_5m),last_30m):max:forwarder.queue_depth{*} by {service,queue} > 100",
        advice="By more than 100 messages in half an hour: there are fewer workers than the tasks need.",
    ),
    Alert(
        name="ForwarderTasksFail",
        title="Tasks fail",
        severity="warning",
        entry="tasks-fail",
        held="10m",
        prometheus=(
            f"sum by ({SCOPE}, queue) (rate(forwarder_tasks_total{{{FAILED}}}[10m]))"
            f" / sum by ({SCOPE}, queue) (rate(forwarder_tasks_total[10m])) > 0.05"
        ),
        datadog=(
            f"sum(last_10m):sum:forwarder.tasks{{{MONITOR_FAILED}}} by {{service,queue}}.as_count()"
            " / sum:forwarder.tasks{*} by {service,queue}.as_count() > 0.05"
        ),
        advice="More than one in twenty ends in a failure; the code says why.",
    ),
    Alert(
        name="ForwarderTasksGoBack",
        title="Tasks go back to the queue",
        severity="warning",
        entry="tasks-go-back-to-the-queue",
        held="10m",
        prometheus=(
            f'sum by ({SCOPE}, queue) (rate(forwarder_tasks_total{{outcome="requeued"}}[10m]))'
            f" / sum by ({SCOPE}, queue) (rate(forwarder_tasks_total[10m])) > 0.1"
        ),
        datadog=(
            "sum(last_10m):sum:forwarder.tasks{outcome:requeued} by {service,queue}.as_count()"
            " / sum:forwarder.tasks{*} by {service,queue}.as_count() > 0.1"
        ),
        advice="The inference server stays busy, the result store is away, or children are killed.",
    ),
    Alert(
        name="ForwarderDeadLetters",
        title="Messages are put aside",
        severity="warning",
        entry="messages-are-put-aside",
        held="0m",
        # A counter that begins at 1 never rose: what was not there before these 15 minutes counts
        # whole. "Before" is a day, so that what Prometheus did not see for a while isn't new.
        prometheus=(
            f'sum by ({SCOPE}, queue) (increase(forwarder_deliveries_total{{kind="dead"}}[15m])) > 0'
            f' or sum by ({SCOPE}, queue) (forwarder_deliveries_total{{kind="dead"}}'
            ' unless last_over_time(forwarder_deliveries_total{kind="dead"}[1d] offset 15m)) > 0'
        ),
        datadog="sum(last_15m):sum:forwarder.deliveries{kind:dead} by {service,queue}.as_count() > 0",
        advice="They are in the dead letters with the reason, and wait for somebody to decide.",
    ),
    Alert(
        name="ForwarderRedeliveries",
        title="Messages are delivered again",
        severity="warning",
        entry="messages-are-delivered-again",
        held="15m",
        prometheus=(
            f'sum by ({SCOPE}, queue) (rate(forwarder_deliveries_total{{kind="redelivered"}}[15m]))'
            f" / sum by ({SCOPE}, queue) (rate(forwarder_deliveries_total[15m])) > 0.1"
        ),
        datadog=(
            "sum(last_15m):sum:forwarder.deliveries{kind:redelivered} by {service,queue}.as_count()"
            " / sum:forwarder.deliveries{*} by {service,queue}.as_count() > 0.1"
        ),
        advice="Workers or their children die, or lose their leases: some tasks are computed twice.",
    ),
    Alert(
        name="ForwarderInferenceErrors",
        title="The inference server answers with errors",
        severity="warning",
        entry="the-inference-server-answers-with-errors",
        held="10m",
        prometheus=(
            f"sum by ({SCOPE}) (rate(forwarder_inference_seconds_count{{{ANSWERED_5XX}}}[10m]))"
            f" / sum by ({SCOPE}) (rate(forwarder_inference_seconds_count[10m])) > 0.05"
        ),
        datadog=(
            f"sum(last_10m):count:forwarder.inference_seconds{{{MONITOR_5XX}}} by {{service}}.as_count()"
            " / count:forwarder.inference_seconds{*} by {service}.as_count() > 0.05"
        ),
        advice="The tasks succeed, with that status in their results: only their senders see it.",
    ),
    Alert(
        name="ForwarderHooksFail",
        title="Hooks fail",
        severity="warning",
        entry="hooks-fail",
        held="10m",
        prometheus=(
            f'sum by ({SCOPE}, hook) (rate(forwarder_hook_total{{outcome="failed"}}[10m]))'
            f" / sum by ({SCOPE}, hook) (rate(forwarder_hook_total[10m])) > 0.05"
        ),
        datadog=(
            "sum(last_10m):sum:forwarder.hook{outcome:failed} by {service,hook}.as_count()"
            " / sum:forwarder.hook{*} by {service,hook}.as_count() > 0.05"
        ),
        advice="Results are not touched; records or callbacks are missing at their receiver.",
    ),
    Alert(
        name="ForwarderHooksHoldSlots",
        title="Hooks hold the slots",
        severity="warning",
        entry="hooks-hold-the-slots",
        held="15m",
        prometheus=(
            # Not the sum: a task whose first hook runs is in the backlog of the second, too.
            f"max by ({SCOPE}, instance) (forwarder_hook_backlog)"
            f" > 0.5 * sum by ({SCOPE}, instance) (forwarder_concurrency_limit)"
        ),
        datadog=(
            "min(last_15m):max:forwarder.hook_backlog{*} by {host}"
            " / max:forwarder.concurrency_limit{*} by {host} > 0.5"
        ),
        advice="Half of a worker's slots wait for a hook's receiver, not for the model.",
    ),
    Alert(
        name="ForwarderMemory",
        title="A worker is close to its memory limit",
        severity="warning",
        entry="close-to-the-memory-limit",
        held="5m",
        prometheus=(
            'forwarder_memory_bytes{kind="used"} / ignoring (kind) forwarder_memory_bytes{kind="limit"} > 0.9'
        ),
        datadog=(
            "min(last_5m):max:forwarder.memory_bytes{kind:used} by {host}"
            " / max:forwarder.memory_bytes{kind:limit} by {host} > 0.9"
        ),
        advice="Above 70 % it holds back (gevent, or with --autoscale); at the limit the kernel kills it.",
    ),
    Alert(
        name="ForwarderAwsClients",
        title="AWS clients are built over and over",
        severity="warning",
        entry="aws-clients-are-built-over-and-over",
        held="1h",
        prometheus=(
            f"sum by ({SCOPE}, instance, service) (increase(forwarder_aws_client_builds_total[1h])) > 36"
        ),
        datadog="sum(last_1h):sum:forwarder.aws_client_builds{*} by {host,service}.as_count() > 36",
        advice="Each costs memory and an eighth of a second of processor: an expiring role, or a leak.",
    ),
)
