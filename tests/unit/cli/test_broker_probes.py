"""What ``check`` makes of the answers of brokers; all of them are fakes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from forwarder.cli.broker_probes import (
    RABBITMQ_CONSUMER_TIMEOUT_S,
    ask_amqp,
    ask_redis,
    ask_sqs,
    judge_redis,
    require_write,
    url_remedies,
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

    def set(self, key: str, value: str, *, ex: int) -> None:
        """Take what check writes."""

    def delete(self, key: str) -> None:
        """Delete it again."""

    def info(self) -> dict[str, Any]:
        if self._said is None:
            raise NoPermissionError("this user has no permissions to run the 'info' command")
        return self._said


def reaching(monkeypatch: pytest.MonkeyPatch, said: dict[str, Any] | None) -> None:
    app = SimpleNamespace(connection_for_read=lambda: FakeConnection(said))
    monkeypatch.setattr("forwarder.cli.tasks.impatient_app", lambda *_, **__: app)


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


class Keys:
    """A Redis that notes what is written and deleted, or refuses it."""

    def __init__(self, *, refuses: Exception | None = None, keeps: bool = False) -> None:
        self.held: dict[str, int] = {}
        self.written: list[str] = []
        self._refuses = refuses
        self._keeps = keeps

    def set(self, key: str, value: str, *, ex: int) -> None:
        if self._refuses is not None:
            raise self._refuses
        self.written.append(key)
        self.held[key] = ex

    def delete(self, key: str) -> None:
        if self._keeps:
            raise NoPermissionError("this user has no permissions to run the 'del' command")
        del self.held[key]


def test_a_redis_is_tried_with_a_key_that_is_gone_afterwards() -> None:
    keys = Keys()
    require_write(keys, "key", url=URL, setting="--broker-url")
    assert keys.written == ["key"]
    assert keys.held == {}


def test_a_key_that_may_not_be_deleted_is_no_failure_and_expires() -> None:
    keys = Keys(keeps=True)
    require_write(keys, "key", url=URL, setting="--broker-url")
    assert 0 < keys.held["key"] <= 60


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ReadOnlyError("You can't write against a read only replica."), "set --broker-url to its primary"),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "maxmemory"),
        (NoPermissionError("no permissions to access a key"), "ACL SETUSER"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "configuration of Redis"),
    ],
)
def test_a_redis_that_refuses_writes_is_a_failure_with_its_own_remedy(error: Exception, remedy: str) -> None:
    with pytest.raises(NotWorking, match=f"refuses writes: {type(error).__name__}: ") as failure:
        require_write(Keys(refuses=error), "key", url=URL, setting="--broker-url")
    assert remedy in failure.value.remedy


def test_the_broker_is_written_to_like_the_workers_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(FakeConnection, "set", lambda self, key, value, *, ex: written.append(key))
    reaching(monkeypatch, info())
    ask_redis(Settings(broker_url=URL, queues=("work",)))
    (key,) = written
    assert key.startswith("forwarder:{work}:check-")


def test_only_a_url_of_tls_is_said_to_want_it() -> None:
    assert "TimeoutError" not in url_remedies("redis://host/0", "--broker-url")
    remedies = url_remedies("rediss://host/0", "--broker-url")
    assert remedies["TimeoutError"] == "let the server speak TLS, or begin --broker-url with redis://"
    assert "amqp://" in url_remedies("amqps://host//", "--broker-url")["SSLError"]


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
