"""Spans by ddtrace's own tracer, each in a process of its own: this one stays without it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from forwarder.telemetry.tracing import DatadogSpan


def run(code: str) -> str:
    """Run code with ddtrace loaded, and nothing sent; return what it prints."""
    env = {
        "DD_TRACE_AGENT_URL": "http://127.0.0.1:1",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_TRACE_STARTUP_LOGS": "false",
    }
    begin = "import ddtrace.auto, os\nfrom forwarder.telemetry import tracing\n"
    argv = [sys.executable, "-uc", begin + textwrap.dedent(code) + "\nos._exit(0)"]
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=140).stdout


def test_without_ddtrace_there_are_no_spans_and_nothing_is_loaded() -> None:
    code = (
        "import sys; from forwarder.telemetry import tracing;"
        "made = tracing.begin(predict_url='http://h/p', forks=True);"
        "print(made, [m for m in sys.modules if m.startswith('ddtrace')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=140
    )
    assert done.stdout == "None []\n"


def test_what_ddtrace_adds_to_a_worker_is_still_where_we_take_it_off() -> None:
    told = run(
        """
        import celery, redis
        from celery import signals
        def ours():
            names = ("task_prerun", "task_postrun", "task_failure", "task_retry")
            return [len(getattr(signals, name).receivers or ()) for name in names]
        print(ours(), hasattr(redis.Redis.execute_command, "__wrapped__"))
        tracing.begin(predict_url="http://h/p", forks=False)
        print(ours(), hasattr(redis.Redis.execute_command, "__wrapped__"))
        print(len(signals.before_task_publish.receivers) > 0)
        """
    )
    assert told.splitlines() == ["[1, 1, 1, 1] True", "[0, 0, 0, 0] False", "True"]


def test_only_traces_with_a_task_in_them_are_sent() -> None:
    told = run(
        """
        from types import SimpleNamespace as Span
        only = tracing._only_tasks()
        poll, task = [Span(name="s3.command")], [Span(name="forwarder.task"), Span(name="s3.command")]
        print(only.process_trace(poll), only.process_trace(task) is task)
        """
    )
    assert told == "None True\n"


def test_a_process_that_forks_keeps_no_exporter_and_its_child_makes_one_for_its_first_span() -> None:
    told = run(
        """
        from forwarder.forwarding.record import TaskRecord
        from ddtrace.trace import tracer
        made = tracing.begin(predict_url="http://h/p", forks=True)
        def told(who):
            try:
                tracer._span_aggregator.writer._exporter.send(b"no spans")
            except Exception as error:
                print(who, error)
            print([type(each).__name__ for each in tracer._span_aggregator.user_processors])
        told("parent:")
        if os.fork() == 0:
            made.begin_task(TaskRecord(task_id="a"), {}).end()
            told("child:")
        else:
            os.wait()
        """
    )
    parent, parents, child, childs = told.splitlines()
    assert parent == "parent: TraceExporter has already been consumed"
    assert child.startswith("child: Invalid format")  # it looked at what it is to send
    assert parents == childs == "['OnlyTasks']"


def test_a_ddtrace_that_cannot_close_its_exporter_alone_is_configured_as_without_forks() -> None:
    told = run(
        """
        from types import SimpleNamespace as Old
        tracer = Old(_span_aggregator=Old(writer=Old()))
        print(tracing._leave_exporting_to_children(tracer))
        """
    )
    assert told == "False\n"


def test_a_slots_next_task_is_not_in_the_last_ones_trace() -> None:
    told = run(
        """
        from forwarder.forwarding.record import TaskRecord
        from ddtrace.trace import tracer
        made = tracing.begin(predict_url="http://h:1/predict?key=secret", forks=False)
        first = made.begin_task(TaskRecord(task_id="a"), {"traceparent": f"00-{5:032x}-{6:016x}-01"})
        step = made.begin_step("inference", "predict")
        print(first._span.trace_id, first._span.parent_id, step._span.parent_id == first._span.span_id)
        print(step._span.resource, sorted(step.headers()))
        step.end(); first.end()
        print(tracer.current_span(), tracer.context_provider.active())
        print(made.begin_task(TaskRecord(task_id="b"), {})._span.parent_id)
        print(made.begin_task(TaskRecord(task_id="c"), {"traceparent": "no such thing"})._span.parent_id)
        """
    )
    first, second, *rest = told.splitlines()
    assert first == "5 6 True"
    assert second.startswith("POST /predict ['traceparent', 'tracestate', 'x-datadog-parent-id'")
    assert rest == ["None None", "None", "None"]


def test_what_ddtrace_fails_over_costs_the_trace_and_not_the_task() -> None:
    told = run(
        """
        from forwarder.forwarding.record import CURRENT, TaskRecord, step
        made = tracing.begin(predict_url="http://h:1/predict", forks=False)
        told = {"x-datadog-trace-id": "5", "x-datadog-parent-id": "6"}
        told |= {"x-datadog-sampling-priority": "9" * 4000}
        record = TaskRecord(task_id="a", tracing=made)
        CURRENT.set(record)
        span = made.begin_task(record, told)
        with step("inference", "predict") as asking:
            print(asking.headers(told) == told)
        span.end()
        made._tracer = None
        span = made.begin_task(record, {})
        with step("inference", "predict") as asking:
            asking.answered(200, 1)
            print(asking.headers({}))
        span.end()
        """
    )
    assert told == "True\n{}\n"


def test_an_error_is_told_by_its_class_and_its_code() -> None:
    told = run(
        """
        from forwarder.forwarding.errors import InvalidPayload
        from forwarder.forwarding.record import TaskRecord
        made = tracing.begin(predict_url="http://h:1/predict", forks=False)
        for error in (InvalidPayload("payload-text"), ValueError("payload-text"), None):
            span = made.begin_task(TaskRecord(task_id="a"), {})
            span.end(error)
            tags = {**span._span.get_tags()}
            told = tags.get("error.type"), tags.get("error.message")
            print(span._span.error, *told, "payload-text" in str(tags))
        """
    )
    assert told.splitlines() == [
        "1 InvalidPayload invalid_payload False",
        "1 ValueError None False",
        "0 None None False",
    ]


@pytest.mark.parametrize(
    ("status", "is_call", "marked"), [("200", True, 0), ("404", True, 0), ("500", True, 1), ("500", False, 0)]
)
def test_an_answer_that_is_the_servers_own_failure_marks_the_calls_span(
    status: str, is_call: bool, marked: int
) -> None:
    span = SimpleNamespace(error=0, set_tag=lambda name, value: None)
    DatadogSpan(span, None, is_call=is_call).tag("http.status_code", status)
    assert span.error == marked


def test_a_tracer_that_is_switched_off_makes_no_spans() -> None:
    told = run(
        "from ddtrace.trace import tracer; tracer.enabled = False;"
        "print(tracing.begin(predict_url='', forks=False))"
    )
    assert told == "None\n"
