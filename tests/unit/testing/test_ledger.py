"""What counts as lost, as paid for twice and as recovery, from events alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.testing.ledger import Event, Ledger, Verdict, What, judge, open_ids

KEPT = Verdict(sent=1, lost=(), repeated_after_commit=(), wrong=(), repeats=0, recovery_s=None)


def event(at: float, what: What, task_id: str = "a", detail: str = "") -> Event:
    return Event(at=at, what=what, id=task_id, detail=detail)


def sent(at: float, task_id: str = "a", expect: str = "success") -> Event:
    return event(at, "sent", task_id, expect)


def committed(at: float, task_id: str = "a", state: str = "SUCCESS") -> Event:
    return event(at, "committed", task_id, state)


def test_a_task_that_was_asked_once_and_committed_is_kept() -> None:
    verdict = judge([sent(0.0), event(1.0, "asked"), committed(2.0)])
    assert verdict == KEPT
    assert verdict.kept


def test_a_task_without_an_outcome_is_lost() -> None:
    verdict = judge([sent(0.0), event(1.0, "asked")])
    assert verdict.lost == ("a",)
    assert not verdict.kept


def test_a_task_in_the_dead_letters_is_not_lost_but_wrong_where_success_was_due() -> None:
    verdict = judge([sent(0.0), event(1.0, "dead")])
    assert (verdict.lost, verdict.wrong) == ((), ("a",))


def test_what_the_broker_lost_by_design_is_excused() -> None:
    assert judge([sent(0.0), event(1.0, "excused")]).lost == ()


def test_a_send_that_failed_is_nobodys_loss() -> None:
    verdict = judge([event(0.0, "unsure")])
    assert (verdict.sent, verdict.lost) == (0, ())


def test_a_request_that_begins_after_the_commit_is_paid_for_twice() -> None:
    events = [sent(0.0), event(1.0, "asked"), committed(2.0), event(3.0, "asked")]
    verdict = judge(events)
    assert verdict.repeated_after_commit == ("a",)
    assert verdict.repeats == 0
    assert not verdict.kept


def test_that_holds_for_a_task_whose_sending_seemed_to_fail() -> None:
    events = [event(0.0, "unsure"), event(1.0, "asked"), committed(2.0), event(3.0, "asked")]
    assert judge(events).repeated_after_commit == ("a",)


def test_a_request_that_begins_before_the_commit_is_a_repeat_only() -> None:
    events = [sent(0.0), event(1.0, "asked"), event(1.5, "asked"), committed(2.0)]
    verdict = judge(events)
    assert (verdict.repeated_after_commit, verdict.repeats) == ((), 1)
    assert verdict.kept


def test_the_order_of_the_file_does_not_matter() -> None:
    """The watcher of the store writes when it sees, not when it happened."""
    events = [event(3.0, "asked"), committed(2.0), sent(0.0), event(1.0, "asked")]
    assert judge(events).repeated_after_commit == ("a",)


@pytest.mark.parametrize(
    ("expect", "states", "dead", "wrong"),
    [
        ("success", ["SUCCESS"], False, False),
        ("success", ["FAILURE"], False, True),
        ("success", ["FAILURE", "SUCCESS"], False, True),
        ("success", ["SUCCESS"], True, True),
        ("failure", ["FAILURE"], False, False),
        ("failure", ["SUCCESS"], False, True),
        ("dead", [], True, False),
        ("dead", ["FAILURE"], False, True),
        ("failed_and_dead", ["FAILURE"], True, False),
        ("failed_and_dead", ["FAILURE"], False, True),
        ("failed_and_dead", [], True, True),
        ("any", ["FAILURE"], True, False),
    ],
)
def test_the_outcome_must_be_the_expected_one(
    expect: str, states: list[str], dead: bool, wrong: bool
) -> None:
    events = [sent(0.0, expect=expect), *(committed(1.0 + n, state=state) for n, state in enumerate(states))]
    if dead:
        events.append(event(9.0, "dead"))
    assert judge(events).wrong == (("a",) if wrong else ())


def test_recovery_is_the_longest_wait_of_what_was_there_when_everything_worked_again() -> None:
    events = [
        sent(0.0, "before"),
        committed(1.0, "before"),
        sent(2.0, "during"),
        event(5.0, "healed", "some fault"),
        committed(9.0, "during"),
        sent(6.0, "after"),
        committed(20.0, "after"),
    ]
    assert judge(events).recovery_s == 4.0


def test_a_run_without_a_fault_has_no_recovery() -> None:
    assert judge([sent(0.0), committed(1.0)]).recovery_s is None


def test_open_is_what_still_lacks_a_part_of_its_outcome() -> None:
    events = [
        sent(0.0, "done"),
        committed(1.0, "done"),
        sent(0.0, "waiting"),
        sent(0.0, "half", expect="failed_and_dead"),
        committed(1.0, "half", state="FAILURE"),
        event(0.0, "unsure", "unsure"),
    ]
    assert open_ids(events) == {"waiting", "half"}


def test_what_several_writers_append_is_read_back_in_order(tmp_path: Path) -> None:
    times = iter([1.0, 2.0])
    one, other = (Ledger(tmp_path / "ledger", clock=lambda: next(times)) for _ in range(2))
    one.note("sent", "a", "success")
    other.note("asked", "a")
    assert list(one.events()) == [sent(1.0), event(2.0, "asked")]


def test_a_ledger_nobody_wrote_to_is_empty(tmp_path: Path) -> None:
    assert list(Ledger(tmp_path / "ledger").events()) == []
