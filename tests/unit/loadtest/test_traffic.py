"""Tasks are sent when they are due, and results found in whatever order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from forwarder.loadtest.traffic import MISSES_MAX, Ended, Results, Sender

DONE = {"status": "SUCCESS", "result": {}, "date_done": "2026-01-01T00:00:10+00:00"}
AT = 1767225600.0  # 2026-01-01T00:00:00 UTC


class Store:
    """Stored states by task id; counts how often it is read."""

    def __init__(self) -> None:
        self.states: dict[str, Mapping[str, Any]] = {}
        self.reads = 0

    def read(self, task_id: str) -> Mapping[str, Any] | None:
        self.reads += 1
        return self.states.get(task_id)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def results(store: Store) -> Results:
    return Results(read=store.read, error_code=lambda meta: (meta or {}).get("code"))


def test_a_result_is_noted_once_with_the_time_that_the_worker_says(store: Store, results: Results) -> None:
    results.add("a", AT)
    assert results.look() == 0
    store.states["a"] = DONE
    assert results.look() == 1
    assert results.look() == 0
    assert results.ended == [Ended(sent_at=AT, done_at=AT + 10, state="SUCCESS", code=None)]
    assert results.pending == 0


def test_a_time_without_a_zone_is_utc(store: Store, results: Results) -> None:
    results.add("a", AT)
    store.states["a"] = {**DONE, "date_done": "2026-01-01T00:00:10"}
    results.look()
    assert results.ended[0].done_at == AT + 10


@pytest.mark.parametrize("status", ["PENDING", "STARTED", "RETRY"])
def test_a_task_that_is_still_worked_on_has_not_ended(store: Store, results: Results, status: str) -> None:
    results.add("a", AT)
    store.states["a"] = {"status": status}
    assert results.look() == 0


@pytest.mark.parametrize("status", ["FAILURE", "REVOKED"])
def test_a_failure_is_noted_with_its_code(store: Store, results: Results, status: str) -> None:
    results.add("a", AT)
    store.states["a"] = {**DONE, "status": status, "code": "expired"}
    results.look()
    (task,) = results.ended
    assert (task.succeeded, task.code) == (False, "expired")


def test_a_round_does_not_read_every_task_that_is_still_waiting(store: Store, results: Results) -> None:
    for number in range(5000):
        results.add(str(number), AT)
    results.look()
    assert store.reads == 2 * MISSES_MAX


def test_everything_that_is_ready_is_read_in_one_round(store: Store, results: Results) -> None:
    for number in range(500):
        results.add(str(number), AT)
        store.states[str(number)] = DONE
    assert results.look() == 500


def test_results_behind_many_stuck_tasks_are_found_too(store: Store, results: Results) -> None:
    for number in range(1000):
        results.add(str(number), AT)
    store.states["999"] = DONE
    for _ in range(1000 // MISSES_MAX + 1):
        results.look()
    assert len(results.ended) == 1


class Clock:
    """A clock that stands still but for what the test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def sender(
    sent: list[Any], *, offsets_s: list[float], clock: Clock, failure: Exception | None = None
) -> Sender:
    def send(payload: dict[str, Any], task_id: str) -> None:
        if failure:
            raise failure

    return Sender(
        send=send,
        payloads=({"args": {}} for _ in offsets_s),
        offsets_s=iter(offsets_s),
        sent=lambda task_id, at: sent.append((task_id, at)),
        now=clock,
    )


def test_a_burst_is_sent_at_once_each_under_its_own_id() -> None:
    sent: list[tuple[str, float]] = []
    sender(sent, offsets_s=[0, 0, 0], clock=Clock()).run()
    assert len({task_id for task_id, _ in sent}) == 3
    assert [at for _, at in sent] == [100.0] * 3


def test_a_sender_that_is_stopped_sends_no_more() -> None:
    sent: list[Any] = []
    stopped = sender(sent, offsets_s=[0, 3600], clock=Clock())
    stopped.stop()
    stopped.run()
    assert sent == []


def test_what_ends_the_sending_is_kept_for_the_run() -> None:
    failure = OSError("no broker")
    failed = sender([], offsets_s=[0], clock=Clock(), failure=failure)
    failed.run()
    assert failed.failure is failure
