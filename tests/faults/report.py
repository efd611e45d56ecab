"""What a run shows: a line a scenario while it runs, a table and JSON at the end. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.faults.runner import Outcome

HEAD = ("scenario", "sent", "lost", "after commit", "other repeats", "recovery s", "")
MARK_OK = "ok"


def line(outcome: Outcome) -> str:
    """Return one line for progress."""
    return f"{outcome.cell}: {mark(outcome)} ({outcome.seconds:.0f} s)"


def mark(outcome: Outcome) -> str:
    """Return how it went in a few words."""
    if outcome.skipped:
        return f"skipped: {outcome.reason}"
    return f"BROKEN: {outcome.reason}" if outcome.reason else MARK_OK


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table, one row an outcome."""
    rows = [HEAD, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    return "\n".join(_aligned(row, widths) for row in rows)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the sums in one line."""
    verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
    repeated = sum(len(v.repeated_after_commit) for v in verdicts)
    recovery_s = max((v.recovery_s for v in verdicts if v.recovery_s is not None), default=0.0)
    return (
        f"{len(outcomes)} scenarios, {sum(v.sent for v in verdicts)} tasks: "
        f"lost {sum(len(v.lost) for v in verdicts)} (must be 0), "
        f"GPU calls repeated after a commit {repeated} (must be 0), "
        f"other repeats {sum(v.repeats for v in verdicts)}, slowest recovery {recovery_s:.1f} s; "
        f"{sum(not outcome.passed for outcome in outcomes)} broken, "
        f"{sum(outcome.skipped for outcome in outcomes)} skipped"
    )


def as_json(outcomes: Sequence[Outcome], *, worker: str, seed: str) -> str:
    """Return everything for a program, the ids included."""
    return json.dumps(
        {"worker": worker, "seed": seed, "scenarios": [_entry(outcome) for outcome in outcomes]}, indent=2
    )


def _row(outcome: Outcome) -> tuple[str, ...]:
    verdict = outcome.verdict
    if verdict is None:
        return (str(outcome.cell), "", "", "", "", "", mark(outcome))
    recovery = "" if verdict.recovery_s is None else f"{verdict.recovery_s:.1f}"
    counts = (verdict.sent, len(verdict.lost), len(verdict.repeated_after_commit), verdict.repeats)
    return (str(outcome.cell), *map(str, counts), recovery, mark(outcome))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, last = row
    cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=False)), last]
    return "  ".join(cells).rstrip()


def _entry(outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    entry: dict[str, Any] = {
        "scenario": outcome.cell.scenario.name,
        "broker": outcome.cell.broker,
        "results": outcome.cell.results,
        "pool": outcome.cell.pool,
        "passed": outcome.passed,
        "skipped": outcome.skipped,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 1),
    }
    if verdict is not None:
        entry |= {
            "sent": verdict.sent,
            "lost": verdict.lost,
            "repeated_after_commit": verdict.repeated_after_commit,
            "wrong": verdict.wrong,
            "repeats": verdict.repeats,
            "recovery_s": verdict.recovery_s,
        }
    return entry
