"""What `dead` prints and asks, on dead letters that a list in memory holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from forwarder.brokers.dead_letters import (
    DEATH_HEADER,
    DeadLetter,
    NoSuchLetter,
    NoSuchQueue,
    OpenedLetter,
    read_letter,
    with_death,
)
from forwarder.brokers.deliveries import Death
from forwarder.cli import dead, tasks
from forwarder.settings import Settings

Run = Callable[..., Result]


def letter(task_id: str, **headers: Any) -> tuple[DeadLetter, dict[str, Any]]:
    death = Death(code="dead_lettered", error="too often", queue="q", deliveries=6, at="2030-01-01T00:00:00")
    all_headers = with_death({"id": task_id, "task": "forwarder.forward", **headers}, death)
    return read_letter(all_headers, b"hunter2", queue="q"), all_headers


class Letters:
    """Dead letters in memory."""

    def __init__(self) -> None:
        self.held = [letter("t1", argsrepr="hunter2"), letter("t2"), letter("t2")]
        self.queue_exists = True
        self.closed = False

    def list(self, limit: int) -> Sequence[DeadLetter]:
        return [found for found, _ in self.held[:limit]]

    def show(self, letter_id: str) -> OpenedLetter:
        for found, headers in self.held:
            if found.id == letter_id:
                return OpenedLetter(letter=found, headers=headers, body="hunter2")
        raise NoSuchLetter(letter_id)

    def requeue(
        self, ids: Collection[str] | None, before: Callable[[DeadLetter], None]
    ) -> Sequence[DeadLetter]:
        if not self.queue_exists:
            raise NoSuchQueue("q")
        went = self.purge(ids)
        for found in went:
            before(found)
        return went

    def purge(self, ids: Collection[str] | None) -> Sequence[DeadLetter]:
        gone = [found for found, _ in self.held if ids is None or found.id in ids]
        self.held = [(found, headers) for found, headers in self.held if found not in gone]
        return gone

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def forgotten() -> list[str]:
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, letters: Letters, forgotten: list[str]) -> Run:
    monkeypatch.setattr(dead, "open_dead_letters", lambda settings: letters)
    monkeypatch.setattr(dead, "forget_failure", lambda settings: lambda found: forgotten.append(found.id))

    def invoke(*args: str, stdin: str = "") -> Result:
        result = CliRunner().invoke(dead.dead, args, input=stdin, standalone_mode=False)
        assert letters.closed or result.exception
        return result

    return invoke


def test_list_is_a_table(run: Run) -> None:
    result = run("list")
    head, first, *rest = result.stdout.splitlines()
    assert head.split() == ["at", "id", "code", "deliveries", "body_bytes", "queue", "task", "error"]
    assert first.split()[1:4] == ["t1", "dead_lettered", "6"]
    assert first.index("t1") == head.index("id")
    assert len(rest) == 2
    assert result.return_value == 0


def test_list_says_that_there_are_more(run: Run) -> None:
    result = run("list", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert "more than 2" in result.stderr


def test_list_says_that_there_are_none(run: Run, letters: Letters) -> None:
    letters.held.clear()
    assert run("list").stdout == "no dead letters\n"


def test_list_as_json(run: Run, letters: Letters) -> None:
    assert json.loads(run("list", "--json").stdout)[0] == dataclasses.asdict(letters.held[0][0])


def test_what_a_terminal_would_act_on_is_not_printed(run: Run, letters: Letters) -> None:
    letters.held = [letter("t1", task="\x1b[2J")]
    assert "\x1b" not in run("list").stdout
    assert "\x1b" not in run("show", "t1").stdout


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_show_tells_the_reason_and_only_on_demand_the_payload(run: Run, form: tuple[str, ...]) -> None:
    result = run("show", "t1", *form)
    assert "too often" in result.stdout
    assert DEATH_HEADER not in result.stdout
    assert "hunter2" not in result.stdout
    assert run("show", "t1", "--payload", *form).stdout.count("hunter2") == 2


@pytest.mark.parametrize("args", [("show", "t9"), ("requeue", "t9", "t1"), ("purge", "t9")])
def test_an_id_that_is_not_there_fails_and_the_others_are_done(
    run: Run, letters: Letters, args: tuple[str, ...]
) -> None:
    result = run(*args)
    assert result.return_value == 1
    assert result.stderr == "forwarder: no dead letter has the id t9\n"
    assert ("t1" in [found.id for found, _ in letters.held]) == ("t1" not in args)


def test_requeue_forgets_the_failure_of_what_goes(run: Run, forgotten: list[str]) -> None:
    result = run("requeue", "t2")
    assert (result.return_value, result.stdout) == (0, "requeued 2\n")
    assert forgotten == ["t2", "t2"]


def test_requeue_all(run: Run, letters: Letters, forgotten: list[str]) -> None:
    assert run("requeue", "--all").stdout == "requeued 3\n"
    assert not letters.held
    assert forgotten == ["t1", "t2", "t2"]


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize("args", [(), ("t1", "--all")])
def test_either_ids_or_all_must_be_said(
    run: Run, letters: Letters, command: str, args: tuple[str, ...]
) -> None:
    result = run(command, *args)
    assert "either IDs or --all" in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 2
    assert len(letters.held) == 3


def test_purging_all_is_asked_about(run: Run, letters: Letters, forgotten: list[str]) -> None:
    run("purge", "--all", stdin="n\n")
    assert len(letters.held) == 3
    assert run("purge", "--all", stdin="y\n").return_value == 0
    assert not letters.held
    assert not forgotten


def test_purging_all_is_not_asked_about_after_yes(run: Run, letters: Letters) -> None:
    assert run("purge", "--all", "--yes").stdout == "purged 3\n"


def test_a_queue_that_is_gone_is_told(run: Run, letters: Letters) -> None:
    letters.queue_exists = False
    result = run("requeue", "--all")
    assert str(result.exception) == "the queue q does not exist any more"
    assert len(letters.held) == 3
    assert letters.closed


@pytest.mark.parametrize(
    ("stored", "forgotten"),
    [
        (None, False),
        ({"status": "SUCCESS", "result": 1}, False),
        ({"status": "FAILURE", "result": {"custom": '{"code": "dead_lettered"}'}}, True),
        ({"status": "FAILURE", "result": {"custom": '{"code": "inference_timeout"}'}}, False),
        ({"status": "FAILURE", "result": {"exc_type": "KeyError"}}, False),
    ],
)
def test_only_the_failure_that_put_the_letter_aside_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, stored: Any, forgotten: bool
) -> None:
    gone: list[str] = []
    app = SimpleNamespace(backend=SimpleNamespace(forget=gone.append))
    monkeypatch.setattr(tasks, "impatient_app", lambda _: app)
    monkeypatch.setattr(tasks, "reader", lambda _: lambda _: stored)
    dead.forget_failure(Settings())(letter("t1")[0])
    assert gone == ["t1"] * forgotten
