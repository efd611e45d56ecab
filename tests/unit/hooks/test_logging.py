"""The logging hook: what it tries again, what it renews, what it gives up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ReadTimeoutError,
)

from forwarder.aws_errors import NoClientError
from forwarder.cloud.refreshing import Built, RefreshingClient
from forwarder.forwarding.ports import Completion
from forwarder.hooks.errors import HookError
from forwarder.hooks.logging import TRIES_MAX, FirehoseHook, Verdict, judge
from forwarder.settings.model import EndpointIdentity

COMPLETION = Completion(task_id="t-1", payload={"args": 1}, response={"result": 2}, succeeded=True)


def aws_error(code: str, status: int = 400) -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": "arn:aws:iam::1"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "PutRecord")


def no_client(
    cause: BaseException | None, *, retry_in_s: float = 0.0, lasting: bool = False
) -> NoClientError:
    error = NoClientError("no firehose client", retry_in_s=retry_in_s, lasting=lasting)
    error.__cause__ = cause
    return error


EXPIRED = aws_error("ExpiredTokenException")
UNREACHABLE = EndpointConnectionError(endpoint_url="https://sts.example")
DENIED = aws_error("AccessDenied", 403)


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
    """Hands out one client, after the given errors in turn."""

    def __init__(self, client: FakeFirehose, errors: list[Exception]) -> None:
        self.client = client
        self.errors = errors
        self.discarded: list[Any] = []

    def get(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return self.client

    def discard(self, client: Any) -> None:
        self.discarded.append(client)


class Scene:
    def __init__(self, *errors: Exception, no_client: list[Exception] | None = None) -> None:
        self.firehose = FakeFirehose(list(errors))
        self.clients = FakeClients(self.firehose, no_client or [])
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
    assert scene.firehose.calls == TRIES_MAX == len(scene.waits_s) + 1
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


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (no_client(UNREACHABLE), Verdict.RETRY),
        (no_client(ConnectTimeoutError(endpoint_url="https://sts.example")), Verdict.RETRY),
        (no_client(ReadTimeoutError(endpoint_url="https://sts.example")), Verdict.RETRY),
        (no_client(aws_error("Throttling")), Verdict.RETRY),
        (no_client(aws_error("IDPCommunicationError")), Verdict.RETRY),
        (no_client(aws_error("InternalFailure", 500)), Verdict.RETRY),
        (no_client(CredentialRetrievalError(provider="p", error_msg="m")), Verdict.RETRY),
        (no_client(MetadataRetrievalError(error_msg="m")), Verdict.RETRY),
        (no_client(UNREACHABLE, lasting=True), Verdict.STOP),
        (no_client(DENIED), Verdict.STOP),
        (no_client(EXPIRED), Verdict.STOP),
        (no_client(aws_error("ValidationError")), Verdict.STOP),
        (no_client(NoRegionError()), Verdict.STOP),
        (no_client(NoCredentialsError()), Verdict.STOP),
        (no_client(NoClientError("expired at birth")), Verdict.STOP),
        (no_client(FileNotFoundError("token")), Verdict.STOP),
        (no_client(None), Verdict.STOP),
    ],
)
def test_a_client_that_cannot_be_had_is_waited_for_only_where_waiting_may_help(
    error: NoClientError, verdict: Verdict
) -> None:
    assert judge(error) is verdict


@pytest.mark.parametrize("client_error", [no_client(DENIED), no_client(UNREACHABLE, lasting=True)])
def test_a_role_that_is_refused_or_an_outage_that_lasts_holds_no_slot(client_error: NoClientError) -> None:
    scene = Scene(no_client=[client_error] * 100)
    with pytest.raises(HookError, match=r"after 1 tries: no client: (AccessDenied|EndpointConnectionError)$"):
        scene.hook.deliver(COMPLETION)
    assert scene.waits_s == []
    assert scene.firehose.calls == 0


def test_a_record_waits_until_a_client_may_be_built_again() -> None:
    scene = Scene(no_client=[no_client(UNREACHABLE), no_client(UNREACHABLE, retry_in_s=1.5)])
    assert scene.hook.deliver(COMPLETION) is True
    assert scene.waits_s == [0.2, 1.5]


class Outage:
    """A clock that sleepers move, and a build step that fails until ``over_s``."""

    def __init__(self, over_s: float, jitter: float) -> None:
        self.now, self.over_s, self.jitter = 0.0, over_s, jitter
        self.clients = RefreshingClient(
            service="firehose",
            build=self.build,
            clock=lambda: self.now,
            uniform=self.uniform,
        )

    def build(self) -> Built[FakeFirehose]:
        if self.now < self.over_s:
            raise UNREACHABLE
        return Built(FakeFirehose([]), None)

    def uniform(self, low: float, high: float) -> float:
        return low + self.jitter * (high - low)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def deliver(self) -> bool:
        hook = FirehoseHook(
            clients=self.clients,
            stream="stream",
            endpoint=EndpointIdentity(),
            clock=lambda: self.now,
            sleep=self.sleep,
            uniform=self.uniform,
        )
        return hook.deliver(COMPLETION)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_an_outage_of_three_seconds_loses_no_record(jitter: float) -> None:
    assert Outage(3.0, jitter).deliver() is True


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_in_an_outage_of_an_hour_only_the_first_record_waits(jitter: float) -> None:
    outage = Outage(3600.0, jitter)
    with pytest.raises(HookError):
        outage.deliver()
    assert 3.0 < outage.now < 7.0
    for _ in range(500):
        began = outage.now
        with pytest.raises(HookError, match="after 1 tries"):
            outage.deliver()
        assert outage.now == began
        outage.now += 1.0
    outage.now = 3601.0
    assert outage.deliver() is True


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
