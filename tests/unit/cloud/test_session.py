"""How clients are made: from one session, with explicit temporary credentials."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.exceptions import NoCredentialsError

from forwarder.cloud.session import AwsSession, firehose_client_builder, s3_client
from forwarder.telemetry.metrics import ProcessMetrics

EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)
CREDENTIALS = {
    "AccessKeyId": "ASIAEXAMPLE",
    "SecretAccessKey": "temporary",
    "SessionToken": "token",
    "Expiration": EXPIRY,
}


class FakeSts:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def assume_role(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        return {"Credentials": CREDENTIALS}


class FakeSession:
    """Records the clients that it was asked for."""

    def __init__(self) -> None:
        self.sts = FakeSts()
        self.made: list[tuple[str, dict[str, Any]]] = []

    def client(self, service: str, **arguments: Any) -> Any:
        self.made.append((service, arguments))
        return self.sts if service == "sts" else f"{service} client"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ambient")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ambient")


def test_a_build_assumes_the_role_and_returns_the_client_with_its_expiry() -> None:
    session = FakeSession()
    build = firehose_client_builder(session=session, role_arn="arn:aws:iam::1:role/r", max_pool_connections=7)
    built = build()
    assert built.client == "firehose client"
    assert built.expires_at == EXPIRY.timestamp()
    assert session.sts.asked == [
        {"RoleArn": "arn:aws:iam::1:role/r", "RoleSessionName": "forwarder", "DurationSeconds": 3600}
    ]
    assert session.made[-1] == (
        "firehose",
        {"max_pool_connections": 7, "max_attempts": 1, "credentials": CREDENTIALS},
    )


def test_further_builds_share_the_sts_client() -> None:
    session = FakeSession()
    build = firehose_client_builder(session=session, role_arn="arn", max_pool_connections=7)
    for _ in range(3):
        build()
    assert [service for service, _ in session.made] == ["sts", "firehose", "firehose", "firehose"]


def test_without_a_role_sts_is_not_asked_and_the_client_never_expires() -> None:
    session = FakeSession()
    built = firehose_client_builder(session=session, role_arn=None, max_pool_connections=7)()
    assert built.expires_at is None
    assert session.made == [("firehose", {"max_pool_connections": 7, "max_attempts": 1})]


@pytest.mark.usefixtures("aws")
def test_a_client_has_the_pool_the_timeouts_and_the_attempts_it_was_asked_for() -> None:
    client = AwsSession().client("firehose", max_pool_connections=33, max_attempts=1)
    config = client.meta.config
    assert config.max_pool_connections == 33
    assert config.retries == {"mode": "standard", "total_max_attempts": 1}
    assert (config.connect_timeout, config.read_timeout) == (5.0, 20.0)
    assert AwsSession().client("sqs", read_timeout_s=4.5).meta.config.read_timeout == 4.5


@pytest.mark.usefixtures("aws")
def test_every_try_of_every_client_is_counted_and_sent_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """``before-send`` is sent once a try, and its documentation is botocore's source."""
    metrics = ProcessMetrics()
    client = AwsSession(metrics=metrics).client("sqs", max_attempts=2)
    raw: Any = SimpleNamespace(stream=lambda: iter([b"{}"]))
    busy = AWSResponse("http://x", 503, HTTPHeaders(), raw)
    sent: list[str] = []

    def answer(event_name: str, **_: object) -> AWSResponse:
        sent.append(event_name)
        return busy

    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    client.meta.events.register("before-send.sqs", answer)
    with pytest.raises(client.exceptions.ClientError):
        client.get_queue_attributes(QueueUrl="http://127.0.0.1:1/q")
    assert len(sent) == 2
    assert metrics.snapshot() == {
        "forwarder_aws_client_builds_total{service=sqs}": 1,
        "forwarder_aws_calls_total{service=sqs,operation=GetQueueAttributes}": 2,
    }


@pytest.mark.usefixtures("aws")
def test_a_sessions_own_config_wins() -> None:
    session = AwsSession(config=Config(read_timeout=1))
    assert s3_client(session, max_pool_connections=4).meta.config.read_timeout == 1


@pytest.mark.usefixtures("aws")
def test_temporary_credentials_do_not_become_the_sessions() -> None:
    session = AwsSession()
    with_role = session.client("firehose", credentials=CREDENTIALS)
    ambient = session.client("firehose")
    assert with_role._request_signer._credentials.token == "token"
    assert ambient._request_signer._credentials.access_key == "ambient"


def test_a_client_is_not_made_while_there_are_no_credentials(
    aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be kept, and never look for credentials again."""
    session = AwsSession()
    boto_session = session._session
    monkeypatch.setattr(boto_session, "get_credentials", lambda: None)
    with pytest.raises(NoCredentialsError):
        session.client("sts")
    temporary = session.client("firehose", credentials=CREDENTIALS)
    assert temporary.meta.service_model.service_name == "firehose"
    monkeypatch.undo()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "late")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "late")
    assert session.client("sts").meta.service_model.service_name == "sts"


def _headers_of_a_put(client: Any) -> dict[str, str]:
    """Return the headers with which a client would send an object; nothing is sent."""
    sent: list[Any] = []

    def instead(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        headers: Any = {}
        return AWSResponse(request.url, 200, headers, SimpleNamespace(stream=lambda: iter(())))

    client.meta.events.register("before-send.s3.PutObject", instead)
    client.put_object(Bucket="bucket", Key="key", Body=b"{}", ChecksumAlgorithm="CRC32")
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in sent[0].headers.items()
    }


@pytest.mark.usefixtures("aws")
def test_a_put_asks_for_no_leave_to_send_its_body_and_botocores_own_still_does() -> None:
    """The handler's name is botocore's own affair: where it changes, nothing would be unregistered."""
    ours = _headers_of_a_put(s3_client(AwsSession(), max_pool_connections=1))
    stock = _headers_of_a_put(boto3.client("s3"))
    assert "Expect" not in ours
    assert stock["Expect"] == "100-continue"
    assert ours["User-Agent"].startswith("forwarder Botocore/")
    assert ours.keys() >= stock.keys() - {"Expect"}
