"""What /status is made of."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from forwarder.telemetry.status import TASKS_MAX, in_flight, numbers, versions


def delivery(number: int) -> Any:
    return SimpleNamespace(
        task_id=f"task-{number}",
        queue="q",
        number=2,
        taken_s=float(number),
        payload_bytes=10,
        begun=True,
        message="the payload",
    )


def test_what_is_in_flight_is_listed_from_the_oldest_on_without_payloads() -> None:
    told = in_flight([delivery(5), delivery(3)], payload_bytes=20, now_s=10.0)
    assert told["count"] == 2
    assert told["payload_bytes"] == 20
    assert told["oldest_s"] == 7.0
    assert told["tasks"][0] == {
        "id": "task-3", "queue": "q", "age_s": 7.0, "delivery": 2, "begun": True, "payload_bytes": 10,
    }  # fmt: skip
    assert "the payload" not in json.dumps(told)


def test_of_very_many_tasks_the_oldest_are_listed_and_all_counted() -> None:
    told = in_flight([delivery(number) for number in range(1000)], payload_bytes=0, now_s=1000.0)
    assert told["count"] == 1000
    assert [task["id"] for task in told["tasks"]] == [f"task-{number}" for number in range(TASKS_MAX)]


def test_an_idle_worker_has_no_oldest_task() -> None:
    assert in_flight([], payload_bytes=0, now_s=1.0)["oldest_s"] is None


def test_numbers_are_those_that_json_has() -> None:
    assert numbers([("a", 1.0), ("b", float("nan")), ("c", float("inf"))]) == {"a": 1.0}


def test_versions_are_of_what_is_installed() -> None:
    told = versions()
    assert told["celery"].startswith("5.")
    assert {"python", "kombu", "gevent", "boto3"} <= told.keys()
