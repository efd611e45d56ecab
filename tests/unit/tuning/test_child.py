"""What the children of a worker are measured with, and when they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from forwarder.scaling.container import MIB, Limit
from forwarder.settings import Settings
from forwarder.tuning.asking import Asking
from forwarder.tuning.child import TASKS, Child, NotMeasured, check_room, payloads
from forwarder.tuning.climb import Asked
from forwarder.tuning.measure import Found, measure
from forwarder.tuning.samples import Sample

CHILD = Child(15 * MIB, TASKS)


def sample(number: int, **more: Any) -> Sample:
    return Sample(json.dumps({"args": number, **more}), message_bytes=number, url=None)


def test_the_largest_payloads_come_first_and_all_of_them_in_turn() -> None:
    made = list(payloads([sample(1), sample(3), sample(2)]))
    assert [payload["args"] for payload in made[:4]] == [3, 2, 1, 3]
    assert len(made) == TASKS


def test_nothing_is_written_to_a_destination() -> None:
    [made, *_] = payloads([sample(1, destination_path="s3://bucket/key")])
    assert made == {"args": 1}


@pytest.mark.parametrize(("limit_mb", "fits"), [(300, True), (200, False)])
def test_what_might_fill_the_memory_is_not_tried(limit_mb: int, fits: bool) -> None:
    # 60 + 2 x (24 + 20) MiB
    limit = Limit(limit_mb * MIB, "cgroup2")
    if fits:
        check_room(Settings(), limit, task_bytes=20 * MIB)
        return
    with pytest.raises(NotMeasured, match="could take 148 MiB"):
        check_room(Settings(), limit, task_bytes=20 * MIB)


class Answering(Asking):
    """Asks nobody."""

    def __init__(self) -> None:
        super().__init__(samples=[sample(100)], server=None, inputs=None, unwrap=True)  # type: ignore[arg-type]

    def ask(self, number: int) -> Asked:
        return Asked("answered", 0.1, 10)


def found(requests_max: int, child_of: Callable[[int, float], Child]) -> Found:
    return measure(
        Answering(), child_of=child_of, console=Console(file=io.StringIO()), requests_max=requests_max,
        seconds_max=100.0, concurrency_max=1,
    )  # fmt: skip


def test_the_children_have_a_quarter_of_the_time() -> None:
    given = []

    def child_of(task_bytes: int, within_s: float) -> Child:
        given.append((task_bytes >= 5 * 100, within_s))
        return CHILD

    assert found(90, child_of).child == CHILD
    assert given == [(True, 25.0)]


def test_too_few_requests_are_left_to_the_server() -> None:
    def child_of(task_bytes: int, within_s: float) -> Child:
        raise AssertionError

    measured = found(80, child_of)
    assert measured.child is None
    assert "--max-requests" in measured.child_why


def test_what_could_not_be_measured_says_why_and_the_rest_goes_on() -> None:
    def child_of(task_bytes: int, within_s: float) -> Child:
        raise NotMeasured("no broker")

    measured = found(1000, child_of)
    assert (measured.child, measured.child_why) == (None, "no broker")
    assert measured.levels
