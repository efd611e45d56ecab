"""Hooks run one after the other, and none can hurt the task or the next hook."""

from __future__ import annotations

import contextlib
import logging

import pytest

from forwarder.forwarding.ports import Completion
from forwarder.hooks.errors import HookError
from forwarder.hooks.runner import HookRunner
from forwarder.telemetry.metrics import ProcessMetrics

COMPLETION = Completion(task_id="t-1", payload={"args": "secret"}, response={"result": 1}, succeeded=True)


class Killed(BaseException):
    """Stands for GreenletExit and gevent.Timeout."""


class FakeHook:
    def __init__(self, name: str, outcome: bool | BaseException = True) -> None:
        self.name = name
        self.outcome = outcome
        self.delivered: list[Completion] = []
        self.closed = False

    def deliver(self, completion: Completion) -> bool:
        self.delivered.append(completion)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.closed = True
        if isinstance(self.outcome, BaseException):
            raise self.outcome


def test_every_hook_runs_and_is_counted_whatever_the_others_do() -> None:
    metrics = ProcessMetrics()
    hooks = [FakeHook("a"), FakeHook("b", ValueError("secret")), FakeHook("c", False), FakeHook("d")]
    HookRunner(hooks=hooks, metrics=metrics).run(COMPLETION)
    assert [hook.delivered for hook in hooks] == [[COMPLETION]] * 4
    counted = {name: number for name, number in metrics.snapshot().items() if "total" in name}
    assert counted == {
        "forwarder_hook_total{hook=a,outcome=ok}": 1,
        "forwarder_hook_total{hook=b,outcome=failed}": 1,
        "forwarder_hook_total{hook=c,outcome=skipped}": 1,
        "forwarder_hook_total{hook=d,outcome=ok}": 1,
    }


@pytest.mark.parametrize("ending", [None, ValueError(), Killed()])
def test_the_backlog_has_what_waits_or_runs_and_nothing_once_it_is_over(ending: BaseException | None) -> None:
    metrics = ProcessMetrics()
    seen = []

    class Looks(FakeHook):
        def deliver(self, completion: Completion) -> bool:
            seen.append([metrics.value("forwarder_hook_backlog", hook=hook) for hook in "abc"])
            return super().deliver(completion)

    hooks = [Looks("a"), Looks("b", ending or True), Looks("c")]
    with contextlib.suppress(Killed):
        HookRunner(hooks=hooks, metrics=metrics).run(COMPLETION)
    assert seen == [[1, 1, 1], [0, 1, 1], [0, 0, 1]][: len(seen)]
    assert len(seen) == (2 if isinstance(ending, Killed) else 3)
    assert [metrics.value("forwarder_hook_backlog", hook=hook) for hook in "abc"] == [0, 0, 0]


def test_a_failure_is_logged_with_our_own_words_only(caplog: pytest.LogCaptureFixture) -> None:
    hooks = [FakeHook("a", ValueError("secret")), FakeHook("b", HookError("no answer"))]
    with caplog.at_level(logging.DEBUG):
        HookRunner(hooks=hooks, metrics=ProcessMetrics()).run(COMPLETION)
    assert caplog.messages == [
        "hook_failed task_id='t-1' hook=a error=ValueError",
        "hook_failed task_id='t-1' hook=b error=HookError (no answer)",
    ]


def test_a_task_id_cannot_forge_a_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = Completion(task_id="x\nhook_failed", payload=None, response=None, succeeded=True)
    HookRunner(hooks=[FakeHook("a", ValueError())], metrics=ProcessMetrics()).run(forged)
    assert "\n" not in caplog.text.rstrip("\n")


@pytest.mark.parametrize("ending", [Killed(), SystemExit(), KeyboardInterrupt()])
def test_what_ends_the_greenlet_or_the_process_passes_through(ending: BaseException) -> None:
    with pytest.raises(type(ending)):
        HookRunner(hooks=[FakeHook("a", ending)], metrics=ProcessMetrics()).run(COMPLETION)


def test_every_hook_is_closed_whatever_the_others_do() -> None:
    hooks = [FakeHook("a", ValueError()), FakeHook("b")]
    HookRunner(hooks=hooks, metrics=ProcessMetrics()).close()
    assert [hook.closed for hook in hooks] == [True, True]
