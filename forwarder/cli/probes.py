"""What ``check`` asks the services that a worker needs: one small real call to each.

A probe returns what it saw and raises whatever its client raises; nothing is
created, sent or changed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from forwarder.inference import readiness
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password

if TYPE_CHECKING:
    from forwarder.cloud.session import AwsSession

TIMEOUT_S = 3.0

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
            "let these credentials assume --firehose-role-arn and call firehose:DescribeDeliveryStream "
            "on --firehose-stream"
        )
        probes.append(Probe("firehose", partial(_ask_firehose, settings, aws), remedy))
    return probes


SessionFactory = Callable[[], "AwsSession"]


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
        remedy = "set --result-backend (FORWARDER_RESULT_BACKEND) to a bucket that these credentials may use"
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
    if settings.pool == "prefork" and find_spec("pycurl") is None:
        raise NotWorking("prefork with SQS needs pycurl: pip install 'forwarder[sqs]', or use --pool gevent")
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
    bucket = settings.result_backend.removeprefix("s3://").partition("/")[0]
    aws().client("s3").head_bucket(Bucket=bucket)
    return f"bucket {bucket} is there"


def _ask_inference(settings: Settings) -> str:
    reason = readiness.probe(settings.health_url, timeout_s=TIMEOUT_S)
    if reason is not None:
        raise NotWorking(f"{without_password(settings.health_url)}: {reason}")
    return f"{without_password(settings.health_url)} is ready"


def _ask_firehose(settings: Settings, aws: SessionFactory) -> str:
    from forwarder.cloud.session import firehose_client_builder

    build = firehose_client_builder(
        session=aws(), role_arn=settings.firehose_role_arn, max_pool_connections=1
    )
    answer = build().client.describe_delivery_stream(DeliveryStreamName=settings.firehose_stream)
    status = answer["DeliveryStreamDescription"]["DeliveryStreamStatus"]
    if status != "ACTIVE":
        raise NotWorking(f"stream {settings.firehose_stream} is {status}")
    return f"stream {settings.firehose_stream} is {status}"


def _impatient_session() -> AwsSession:
    from botocore.config import Config

    from forwarder.cloud.session import AwsSession

    config = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1})
    return AwsSession(config=config)
