"""The books of the demo: for every task one right result and one right record.

Nothing here talks to anybody: it compares what was sent with what came back.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

LISTED = 5  # ids that are named of each kind of fault


@dataclass(frozen=True, slots=True, kw_only=True)
class SentTask:
    """A task that the demo has sent; ``sent_at`` is aware."""

    id: str
    numbers: Sequence[int]
    sent_at: datetime

    @property
    def payload(self) -> dict[str, Any]:
        """Return the task's first argument."""
        return {"args": {"id": self.id, "numbers": list(self.numbers)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a stock AsyncResult says of a finished task; ``error_code`` is None for a success."""

    value: Any
    done_at: datetime
    error_code: str | None = None

    def words(self) -> str:
        """Return the result in a few words for the screen."""
        if self.error_code is not None:
            return f"failed with {self.error_code}"
        answer = self.value.get("result") if isinstance(self.value, dict) else self.value
        if isinstance(answer, dict) and {"sum", "weighted_sum", "sum_of_squares"} <= answer.keys():
            sums = (answer["sum"], answer["weighted_sum"], answer["sum_of_squares"])
            return "sum {}, weighted {}, squares {}".format(*sums)
        return json.dumps(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How many tasks were sent, how many of them have their result and their record, and what is wrong."""

    sent: int
    results: int
    records: int
    lost: int
    faults: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __add__(self, other: Account) -> Account:
        """Return the account of both ways together."""
        faults = {
            fault: [*self.faults.get(fault, ()), *other.faults.get(fault, ())]
            for fault in [*self.faults, *other.faults]
        }
        return Account(
            sent=self.sent + other.sent,
            results=self.results + other.results,
            records=self.records + other.records,
            lost=self.lost + other.lost,
            faults=faults,
        )

    @property
    def balanced(self) -> bool:
        """Return whether nothing is missing, wrong, or there twice."""
        return not self.faults

    def summary(self) -> str:
        """Return the demo's last line."""
        counts = f"{self.sent} sent, {self.results} results, {self.records} records"
        return f"demo: {counts}, {self.lost} lost"

    def complaints(self) -> list[str]:
        """Return a line for each kind of fault, with the first few tasks that have it."""
        return [
            f"{fault}: {len(ids)} ({', '.join(ids[:LISTED])}{', …' if len(ids) > LISTED else ''})"
            for fault, ids in self.faults.items()
        ]


def balance(
    tasks: Sequence[SentTask],
    outcomes: Mapping[str, Outcome],
    records: Iterable[Mapping[str, Any]],
    *,
    values_known: bool,
) -> Account:
    """Compare what was sent with what came back.

    With ``values_known`` every result must be what the sample model computes;
    otherwise it need only be a success.
    """
    by_task: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_task[str(record.get("TASK_ID"))].append(record)
    faults: defaultdict[str, list[str]] = defaultdict(list)
    right: Counter[str] = Counter()
    lost = 0
    for task in tasks:
        outcome = outcomes.get(task.id)
        of_result = result_fault(task, outcome, values_known=values_known)
        of_record = record_fault(task, outcome, by_task.pop(task.id, []))
        right["result"] += of_result is None
        right["record"] += of_record is None
        lost += of_result is not None or of_record is not None
        for fault in filter(None, (of_result, of_record)):
            faults[fault].append(task.id)
    if by_task:
        faults["record of a task that was not sent"] = sorted(by_task)
    return Account(
        sent=len(tasks), results=right["result"], records=right["record"], lost=lost, faults=dict(faults)
    )


def result_fault(task: SentTask, outcome: Outcome | None, *, values_known: bool) -> str | None:
    """Return what is wrong with a task's result, None for nothing."""
    if outcome is None:
        return "no result"
    if outcome.error_code is not None:
        return f"failed with {outcome.error_code}"
    if not isinstance(outcome.value, dict) or "result" not in outcome.value:
        return "result of an unknown shape"
    if outcome.value.get("status_code") != 200:
        return f"status {outcome.value.get('status_code')} from the model server"
    if values_known and outcome.value["result"] != expected_result(task):
        return "wrong result"
    return None


def record_fault(task: SentTask, outcome: Outcome | None, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what is wrong with a task's Firehose records, None for exactly one right record."""
    if not records:
        return "no record"
    if len(records) > 1:
        return f"{len(records)} records instead of one"
    (record,) = records
    response = record.get("RESPONSE_BODY")
    if not isinstance(response, dict) or response.get("task_id") != task.id:
        return "record without its task's id in the response"
    if _parsed(record.get("REQUEST_BODY")) != task.payload:
        return "record with another request"
    if outcome is not None and outcome.error_code is None:
        stored = {key: value for key, value in response.items() if key != "task_id"}
        return None if stored == outcome.value else "record with another response"
    return None


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def expected_result(task: SentTask) -> dict[str, Any]:
    """Return what the sample model server must answer, computed here from its description."""
    weighted = squares = 0
    for index, number in enumerate(task.numbers):
        weighted += (index + 1) * number
        squares += number**2
    return {"id": task.id, "sum": sum(task.numbers), "weighted_sum": weighted, "sum_of_squares": squares}


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile in milliseconds. Raises ValueError when there is none."""
    if not latencies_s:
        raise ValueError("no latency was measured")
    ordered = sorted(latencies_s)
    rank = max(1, -(-len(ordered) * percent // 100))
    return 1000.0 * ordered[int(rank) - 1]
