"""The logging hook: what it tries again, what it renews, what it gives up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
)

from forwarder.forwarding.ports import Completion
from forwarder.hooks.errors import HookError
from forwarder.hooks.logging import BACKOFF, FirehoseHook
from forwarder.settings.model import EndpointIdentity

COMPLETION = Completion(task_id="t-1", payload={"args": 1}, response={"result": 2}, succeeded=True)


def aws_error(code: str, status: int = 400) -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": "arn:aws:iam::1"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "PutRecord")


EXPIRED = aws_error("ExpiredTokenException")


class FakeFirehose:
    """Answers with the given errors in turn, then takes records."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors
        self.records: list[dict[str, Any]] = []
        self.calls = 0

    def put_record(self, *, DeliveryStreamName: str, Record: dict[str, bytes]) -> None:  # noqa: N803
        assert DeliveryStreamName == "stream"
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        self.records.append(json.loads(Record["Data"]))


class FakeClients:
    """Hands out one client; fails first as often as it is told."""

    def __init__(self, client: FakeFirehose, failures: int = 0) -> None:
        self.client = client
        self.failures = failures
        self.discarded: list[Any] = []

    def get(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no client")
        return self.client

    def discard(self, client: Any) -> None:
        self.discarded.append(client)


class Scene:
    def __init__(self, *errors: Exception, build_failures: int = 0) -> None:
        self.firehose = FakeFirehose(list(errors))
        self.clients = FakeClients(self.firehose, build_failures)
        self.waits_s: list[float] = []
        self.hook = FirehoseHook(
            clients=self.clients,
            stream="stream",
            endpoint=EndpointIdentity(),
            clock=lambda: 0.0,
            sleep=self.waits_s.append,
            uniform=lambda _low, high: high,
        )


def test_a_task_is_one_record() -> None:
    scene = Scene()
    assert scene.hook.deliver(COMPLETION) is True
    assert [record["TASK_ID"] for record in scene.firehose.records] == ["t-1"]
    assert scene.waits_s == []


@pytest.mark.parametrize(
    "error",
    [
        aws_error("ServiceUnavailableException", 503),
        aws_error("ServiceUnavailableException"),
        aws_error("ThrottlingException"),
        aws_error("Whatever", 429),
        aws_error("InternalFailure", 500),
        EndpointConnectionError(endpoint_url="https://firehose.example"),
        ConnectTimeoutError(endpoint_url="https://firehose.example"),
        ReadTimeoutError(endpoint_url="https://firehose.example"),
    ],
)
def test_busy_and_unreachable_are_tried_again_with_growing_waits(error: Exception) -> None:
    scene = Scene(error, error)
    assert scene.hook.deliver(COMPLETION) is True
    assert len(scene.firehose.records) == 1
    assert scene.waits_s == [0.2, 0.4]


def test_a_firehose_that_stays_busy_is_given_up_after_bounded_tries() -> None:
    scene = Scene(*[aws_error("ServiceUnavailableException", 503)] * 100)
    with pytest.raises(HookError, match="ServiceUnavailableException"):
        scene.hook.deliver(COMPLETION)
    assert scene.firehose.calls == BACKOFF.tries == len(scene.waits_s) + 1
    assert sum(scene.waits_s) < 10


@pytest.mark.parametrize(
    "error",
    [
        aws_error("ResourceNotFoundException"),
        aws_error("AccessDenied", 403),
        ParamValidationError(report="arn:"),
    ],
)
def test_a_refusal_is_not_tried_again_and_gives_nothing_away(error: Exception) -> None:
    scene = Scene(error)
    with pytest.raises(HookError) as raised:
        scene.hook.deliver(COMPLETION)
    assert scene.firehose.calls == 1
    assert "arn:" not in str(raised.value)


def test_expired_credentials_are_renewed_once_at_once() -> None:
    scene = Scene(EXPIRED)
    assert scene.hook.deliver(COMPLETION) is True
    assert scene.clients.discarded == [scene.firehose]
    assert scene.waits_s == []


def test_credentials_that_expire_again_at_once_are_not_renewed_for_ever() -> None:
    scene = Scene(*[EXPIRED] * 100)
    with pytest.raises(HookError, match="ExpiredTokenException"):
        scene.hook.deliver(COMPLETION)
    assert scene.firehose.calls == 2
    assert scene.clients.discarded == [scene.firehose]


def test_a_record_waits_for_a_client_that_cannot_be_built_yet() -> None:
    scene = Scene(build_failures=3)
    assert scene.hook.deliver(COMPLETION) is True
    assert len(scene.waits_s) == 3


def test_each_try_sends_the_same_record() -> None:
    times = iter(range(100))
    scene = Scene(aws_error("ThrottlingException"))
    scene.hook = FirehoseHook(
        clients=scene.clients,
        stream="stream",
        endpoint=EndpointIdentity(),
        clock=lambda: float(next(times)),
        sleep=scene.waits_s.append,
    )
    scene.hook.deliver(COMPLETION)
    assert scene.firehose.records[0]["EMITTED_AT"] == "1970-01-01T00:00:00"
    assert 0.1 <= scene.waits_s[0] <= 0.2
