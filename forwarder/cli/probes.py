"""What ``check`` asks the services that a worker needs: one small real call to each.

A probe returns what it saw and raises whatever its client raises. Nothing stays
changed anywhere, but for the object in S3 that may not be deleted again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from forwarder.inference import readiness
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password

if TYPE_CHECKING:
    from forwarder.cloud.session import ClientFactory

TIMEOUT_S = 3.0

#: S3's word and Firehose's for "these credentials may not".
_DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException"})

_AWS_REMEDIES = {
    "NoRegionError": "set AWS_REGION",
    "NoCredentialsError": "give AWS credentials: a role, AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
    "ProfileNotFound": "set AWS_PROFILE to a profile of your AWS configuration",
}


class NotWorking(Exception):
    """A service answers, but not so that a worker would work; the message says why."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One service: ``ask`` returns what was seen, ``remedy`` says how to mend a failure."""

    name: str
    ask: Callable[[], str]
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe; ``remedy`` is empty where all is well."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def findings(probes: Iterable[Probe], *, secrets: Iterable[str] = ()) -> list[Finding]:
    """Ask every service, one after the other, and return what came of it. Never raises.

    ``secrets`` are removed from error texts. Blocks for a few seconds a service.
    """
    return [_finding(probe, tuple(secrets)) for probe in probes]


def _finding(probe: Probe, secrets: tuple[str, ...]) -> Finding:
    try:
        return Finding(probe.name, True, probe.ask())
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is the answer
        name = type(error).__name__
        detail = " ".join(str(error).split())
        for secret in secrets:
            detail = detail.replace(secret, "***")
        if not isinstance(error, NotWorking):
            detail = f"{name}: {detail}" if detail else name
        return Finding(probe.name, False, detail, _AWS_REMEDIES.get(name, probe.remedy))


def probes_for(settings: Settings) -> list[Probe]:
    """Return a probe for each service that a worker with these settings needs."""
    aws = _impatient_session
    probes = [_broker_probe(settings, aws), _result_probe(settings, aws)]
    remedy = "start the inference server, or set --health-url (FORWARDER_HEALTH_URL)"
    probes.append(Probe("inference server", partial(_ask_inference, settings), remedy))
    if "logging" in settings.hooks:
        remedy = (
            "set --firehose-stream (FORWARDER_FIREHOSE_STREAM) to an active stream, and "
            "--firehose-role-arn (FORWARDER_FIREHOSE_ROLE_ARN) to a role that these credentials may assume"
        )
        probes.append(Probe("firehose", partial(_ask_firehose, settings, aws), remedy))
    return probes


SessionFactory = Callable[[], "ClientFactory"]


def _broker_probe(settings: Settings, aws: SessionFactory) -> Probe:
    if settings.broker_kind == "sqs":
        remedy = (
            "set --sqs-url (FORWARDER_SQS_QUEUE_URL) to an existing queue that these credentials may read"
        )
        return Probe("broker", partial(_ask_sqs, settings, aws), remedy)
    remedy = "start the broker, or set --broker-url (FORWARDER_BROKER_URL), user and password included"
    return Probe("broker", partial(_ask_broker, settings), remedy)


def _result_probe(settings: Settings, aws: SessionFactory) -> Probe:
    if settings.result_backend.startswith("s3://"):
        remedy = "set --result-backend (FORWARDER_RESULT_BACKEND) to where these credentials may put objects"
        return Probe("results", partial(_ask_s3, settings, aws), remedy)
    remedy = "start Redis, or set --result-backend (FORWARDER_RESULT_BACKEND), user and password included"
    return Probe("results", partial(_ask_redis_results, settings), remedy)


def _ask_broker(settings: Settings) -> str:
    """Connect and log in as the worker will: Redis answers a PING, RabbitMQ opens a channel."""
    from forwarder.cli.tasks import impatient_app

    with impatient_app(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        _ = connection.default_channel
    return f"{without_password(settings.broker_url)} answers"


def _ask_redis_results(settings: Settings) -> str:
    from forwarder.cli.tasks import impatient_app

    backend: Any = impatient_app(settings).backend
    backend.client.ping()
    return f"{without_password(settings.result_backend)} answers"


def _ask_sqs(settings: Settings, aws: SessionFactory) -> str:
    answer = aws().client("sqs").get_queue_attributes(
        QueueUrl=settings.sqs_url, AttributeNames=["VisibilityTimeout", "ApproximateNumberOfMessages"]
    )  # fmt: skip
    attributes = answer["Attributes"]
    visibility_timeout_s = int(attributes["VisibilityTimeout"])
    detail = (
        f"{settings.sqs_url} has about {attributes['ApproximateNumberOfMessages']} tasks waiting "
        f"and a visibility timeout of {visibility_timeout_s} s"
    )
    if visibility_timeout_s <= settings.task_timeout_s:
        detail += f"; tasks that run longer are run twice (the task timeout is {settings.task_timeout_s:g} s)"
    return detail


def _ask_s3(settings: Settings, aws: SessionFactory) -> str:
    """Store an object as the worker stores results; it need be allowed neither to read nor to delete it."""
    from forwarder.app import client_app
    from forwarder.cloud.per_process import PerProcess
    from forwarder.cloud.session import s3_client

    s3 = PerProcess(lambda: s3_client(aws(), max_pool_connections=1))
    backend: Any = client_app(settings, s3=s3).backend
    name, text = f"forwarder-check-{uuid4()}", "{}"

    def read_back() -> None:
        if backend.get(name) != text:
            raise NotWorking(f"{settings.result_backend} did not return what was written")

    backend.set(name, text)
    detail = f"{settings.result_backend} takes results"
    try:
        if not _allowed(read_back):
            detail += "; not read back: no s3:GetObject"
    finally:
        if not _allowed(partial(backend.delete, name)):
            detail += f"; the object {name} stays there: no s3:DeleteObject"
    return detail


def _ask_inference(settings: Settings) -> str:
    reason = readiness.probe(settings.health_url, timeout_s=TIMEOUT_S)
    if reason is not None:
        raise NotWorking(f"{without_password(settings.health_url)}: {reason}")
    return f"{without_password(settings.health_url)} is ready"


def _ask_firehose(settings: Settings, aws: SessionFactory) -> str:
    from botocore.exceptions import ClientError

    from forwarder.cloud.session import firehose_client_builder

    build = firehose_client_builder(
        session=aws(), role_arn=settings.firehose_role_arn, max_pool_connections=1
    )
    client = build().client
    try:
        answer = client.describe_delivery_stream(DeliveryStreamName=settings.firehose_stream)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _DENIED_CODES:
            raise
        # The worker only puts records: its role may lack the right to look at the stream.
        return f"stream {settings.firehose_stream} not verified: no firehose:DescribeDeliveryStream"
    status = answer["DeliveryStreamDescription"]["DeliveryStreamStatus"]
    if status != "ACTIVE":
        raise NotWorking(f"stream {settings.firehose_stream} is {status}")
    return f"stream {settings.firehose_stream} is {status}"


def _allowed(call: Callable[[], object]) -> bool:
    """Make a call that no worker needs; return whether these credentials may make it."""
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if error.response["Error"]["Code"] not in _DENIED_CODES:
            raise
        return False
    return True


def _impatient_session() -> ClientFactory:
    from botocore.config import Config

    from forwarder.cloud.session import AwsSession

    config = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1})
    return AwsSession(config=config)
