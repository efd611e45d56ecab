"""What ``check`` makes of the answers of brokers; all of them are fakes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from forwarder.cli.broker_probes import (
    RABBITMQ_CONSUMER_TIMEOUT_S,
    ask_amqp,
    ask_redis,
    ask_sqs,
    judge_redis,
)
from forwarder.cli.findings import Caution, NotWorking
from forwarder.settings import Settings

SQS = Settings(broker_url="sqs://", sqs_url="https://host/1/q", max_deliveries=5)
URL = "redis://host/0"


def info(**said: Any) -> dict[str, Any]:
    return {"redis_version": "7.2.4", "maxmemory": 0, "maxmemory_policy": "noeviction", **said}


class FakeConnection:
    """A kombu connection whose channel's Redis client answers INFO."""

    def __init__(self, said: dict[str, Any] | None) -> None:
        self.default_channel = SimpleNamespace(client=self)
        self._said = said

    def __enter__(self) -> FakeConnection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ensure_connection(self, **options: Any) -> None:
        pass

    def info(self) -> dict[str, Any]:
        if self._said is None:
            raise NoPermissionError("this user has no permissions to run the 'info' command")
        return self._said


def reaching(monkeypatch: pytest.MonkeyPatch, said: dict[str, Any] | None) -> None:
    app = SimpleNamespace(connection_for_read=lambda: FakeConnection(said))
    monkeypatch.setattr("forwarder.cli.tasks.impatient_app", lambda _: app)


def queue(**attributes: str) -> Any:
    answer = {"Attributes": {"ApproximateNumberOfMessages": "7", **attributes}}
    client = SimpleNamespace(get_queue_attributes=lambda **_: answer)
    return lambda: SimpleNamespace(client=lambda _: client)


def redrive(max_receive_count: object) -> str:
    return json.dumps(
        {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:1:q", "maxReceiveCount": max_receive_count}
    )


@pytest.mark.parametrize("version", ["6.2.0", "6.2", "7.0.15", "10.0.1", "255.255.255"])
def test_a_redis_with_the_commands_of_the_worker_is_fine(version: str) -> None:
    assert judge_redis(URL, info(redis_version=version)) == f"{URL} answers"


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", "2.8.24"])
def test_a_redis_without_them_is_a_failure(version: str) -> None:
    with pytest.raises(NotWorking, match=f"is Redis {version}") as failure:
        judge_redis(URL, info(redis_version=version))
    assert "6.2" in failure.value.remedy


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_redis_that_may_drop_queues_is_a_warning(policy: str) -> None:
    seen = judge_redis(URL, info(maxmemory=2**30, maxmemory_policy=policy))
    assert isinstance(seen, Caution)
    assert policy in seen.detail
    assert "noeviction" in seen.remedy


@pytest.mark.parametrize(
    "said",
    [
        {"maxmemory": 2**30, "maxmemory_policy": "noeviction"},
        {"maxmemory": 2**30, "maxmemory_policy": "volatile-lru"},  # queues have no expiry
        {"maxmemory": 0, "maxmemory_policy": "allkeys-lru"},  # memory that is never full
    ],
)
def test_a_redis_that_keeps_queues_is_fine(said: dict[str, Any]) -> None:
    assert judge_redis(URL, info(**said)) == f"{URL} answers"


def test_what_the_broker_says_of_itself_is_asked_over_the_workers_own_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reaching(monkeypatch, info(redis_version="6.0.16"))
    with pytest.raises(NotWorking, match=r"redis://\*\*\*@host/0 is Redis 6.0.16"):
        ask_redis(Settings(broker_url="redis://:hunter2@host/0"))


def test_a_redis_that_may_not_be_asked_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reaching(monkeypatch, None)
    assert ask_redis(Settings(broker_url=URL)) == (
        f"{URL} answers; its version and memory policy are not verified: no INFO"
    )


@pytest.mark.parametrize("task_timeout_s", [10.0, 3600.0])
def test_rabbitmqs_own_timeout_is_named_where_tasks_may_outlast_it(
    monkeypatch: pytest.MonkeyPatch, task_timeout_s: float
) -> None:
    reaching(monkeypatch, {})
    detail = ask_amqp(Settings(broker_url="amqp://u:hunter2@host//", task_timeout_s=task_timeout_s))
    assert detail.startswith("amqp://***@host// answers")
    assert ("consumer_timeout" in detail) is (task_timeout_s > RABBITMQ_CONSUMER_TIMEOUT_S)


@pytest.mark.parametrize("attributes", [{}, {"RedrivePolicy": redrive(6)}, {"RedrivePolicy": redrive("6")}])
def test_a_queue_that_keeps_tasks_until_they_have_their_result_is_fine(attributes: dict[str, str]) -> None:
    assert ask_sqs(SQS, queue(**attributes)) == "https://host/1/q has about 7 tasks waiting"


def test_a_queue_that_moves_tasks_away_before_is_a_failure_with_both_ways_out() -> None:
    with pytest.raises(NotWorking, match="after 5 deliveries: they would never have a result") as failure:
        ask_sqs(SQS, queue(RedrivePolicy=redrive(5)))
    assert failure.value.remedy == (
        "set the redrive policy's maxReceiveCount to at least 6, "
        "or --max-deliveries (FORWARDER_MAX_DELIVERIES) to at most 4"
    )


def test_a_queue_that_moves_tasks_after_one_delivery_can_only_be_changed_itself() -> None:
    with pytest.raises(NotWorking) as failure:
        ask_sqs(SQS, queue(RedrivePolicy=redrive("1")))
    assert failure.value.remedy == "set the redrive policy's maxReceiveCount to at least 6"
