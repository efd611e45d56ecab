"""What was sent, asked and committed, in one file, and the judgement of it.

Everybody who knows something appends to the same file: the producer what it
sent, the model server what it was asked, the watcher of the result store what
was committed. Times are ``time.monotonic()``, which all processes of one
machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

What = Literal["sent", "unsure", "asked", "committed", "dead", "excused", "healed"]
Expect = Literal["success", "failure", "dead", "failed_and_dead", "any"]

#: Expectation to the final states in the result store, and whether the message is in the dead letters.
OUTCOMES: dict[str, tuple[set[str], bool]] = {
    "success": ({"SUCCESS"}, False),
    "failure": ({"FAILURE"}, False),
    "dead": (set(), True),  # it has no id that a result could be stored under
    "failed_and_dead": ({"FAILURE"}, True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the ledger. ``detail``: what is expected of it when sent, its state when committed.

    =============  ======================================================================
    ``sent``       the broker confirmed it
    ``unsure``     the producer got an error: the broker may have it or not
    ``asked``      the model server began to work on it; ``detail`` is the client's port
    ``committed``  its result was seen in the result store
    ``dead``       it was seen in the dead letters
    ``excused``    whoever held it lost it by design (a broker without persistence)
    ``healed``     everything works again; ``id`` names the fault
    =============  ======================================================================
    """

    at: float
    what: What
    id: str
    detail: str = ""


class Ledger:
    """A file that any number of processes append to, a line an event."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Ledger {self.path}>"

    def note(self, what: What, task_id: str, detail: str = "") -> None:
        """Append one event, now. One small write: lines of several processes never mix."""
        line = json.dumps({"at": self._clock(), "what": what, "id": task_id, "detail": detail}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def events(self) -> Iterator[Event]:
        """Yield what was noted so far, in the order of the file."""
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                known: dict[str, Any] = json.loads(line)
                yield Event(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run did to its tasks.

    ``lost``: sent, and by the end without the outcome that was due.
    ``repeated_after_commit``: asked once more after the result had been seen.
    ``wrong``: has an outcome, but not the expected one.
    ``repeats``: further requests that are not explained by a commit.
    ``recovery_s``: the longest time in seconds that a task which was there when
    everything worked again waited for its outcome; None where there was none.
    """

    sent: int
    lost: tuple[str, ...]
    repeated_after_commit: tuple[str, ...]
    wrong: tuple[str, ...]
    repeats: int
    recovery_s: float | None

    @property
    def kept(self) -> bool:
        """Return whether nothing was lost, paid for twice or answered wrongly."""
        return not (self.lost or self.repeated_after_commit or self.wrong)


@dataclass(slots=True)
class _Story:
    """What happened to one id."""

    sent_at: float | None = None
    expect: str = "any"
    committed_at: float | None = None
    states: set[str] = field(default_factory=set)
    dead_at: float | None = None
    asked_at: list[float] = field(default_factory=list)
    excused: bool = False

    @property
    def outcome_at(self) -> float | None:
        """Return when it had its first outcome."""
        return min((at for at in (self.committed_at, self.dead_at) if at is not None), default=None)

    @property
    def is_lost(self) -> bool:
        return self.sent_at is not None and not self.excused and self.outcome_at is None

    @property
    def is_open(self) -> bool:
        """Return whether more is due: who is expected in both places may be in one of them first."""
        half = self.expect == "failed_and_dead" and (self.committed_at is None or self.dead_at is None)
        return self.is_lost or (half and not self.excused)

    @property
    def is_wrong(self) -> bool:
        if self.sent_at is None or self.outcome_at is None or self.expect == "any":
            return False
        states, is_dead = OUTCOMES[self.expect]
        return self.states != states or (self.dead_at is not None) != is_dead

    @property
    def asked_after_commit(self) -> bool:
        return self.committed_at is not None and any(at > self.committed_at for at in self.asked_at)


def judge(events: Iterable[Event]) -> Verdict:
    """Return the verdict over one run's events, in any order. Pure."""
    known = list(events)
    stories = _stories(known)
    healed_at = max((event.at for event in known if event.what == "healed"), default=None)
    return Verdict(
        sent=sum(story.sent_at is not None for story in stories.values()),
        lost=_named(stories, lambda story: story.is_lost),
        repeated_after_commit=_named(stories, lambda story: story.asked_after_commit),
        wrong=_named(stories, lambda story: story.is_wrong),
        repeats=sum(_other_repeats(story) for story in stories.values()),
        recovery_s=None if healed_at is None else _recovery_s(stories.values(), healed_at),
    )


def open_ids(events: Iterable[Event]) -> set[str]:
    """Return the ids whose outcome is still due. Pure."""
    return {task_id for task_id, story in _stories(events).items() if story.is_open}


def _stories(events: Iterable[Event]) -> dict[str, _Story]:
    stories: dict[str, _Story] = {}
    for event in sorted(events, key=lambda event: event.at):
        if event.what != "healed":
            _tell(stories.setdefault(event.id, _Story()), event)
    return stories


def _tell(story: _Story, event: Event) -> None:
    match event.what:
        case "sent":
            story.sent_at = event.at if story.sent_at is None else story.sent_at
            story.expect = event.detail or story.expect
        case "asked":
            story.asked_at.append(event.at)
        case "committed":
            story.states.add(event.detail)
            story.committed_at = event.at if story.committed_at is None else story.committed_at
        case "dead":
            story.dead_at = event.at if story.dead_at is None else story.dead_at
        case "excused":
            story.excused = True


def _named(stories: dict[str, _Story], applies: Callable[[_Story], bool]) -> tuple[str, ...]:
    return tuple(sorted(task_id for task_id, story in stories.items() if applies(story)))


def _other_repeats(story: _Story) -> int:
    before = [at for at in story.asked_at if story.committed_at is None or at <= story.committed_at]
    return max(0, len(before) - 1)


def _recovery_s(stories: Iterable[_Story], healed_at: float) -> float | None:
    waits = [
        story.outcome_at - healed_at
        for story in stories
        if story.sent_at is not None
        and story.sent_at <= healed_at
        and story.outcome_at is not None
        and story.outcome_at > healed_at
    ]
    return max(waits, default=None)
