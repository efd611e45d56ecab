"""What ``check`` asks the services that a worker needs: one small real call to each.

A probe returns what it saw and raises whatever its client raises. Nothing stays
changed anywhere, but for the object in S3 that may not be deleted again, and a key
in Redis for a minute where that is so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from forwarder.cli.broker_probes import (
    TIMEOUT_S,
    SessionFactory,
    ask_amqp,
    ask_redis,
    ask_sqs,
    evicts,
    redis_info,
    require_write,
    url_remedies,
)
from forwarder.cli.findings import Caution, NotWorking, Probe
from forwarder.cli.staging_probe import ask_staging
from forwarder.inference import readiness
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password
from forwarder.settings.table import BY_FIELD

if TYPE_CHECKING:
    from forwarder.cloud.session import ClientFactory

#: S3's word and Firehose's for "these credentials may not".
_DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException"})


def probes_for(settings: Settings) -> list[Probe]:
    """Return a probe for each service that a worker with these settings needs."""
    aws = _impatient_session
    probes = [_broker_probe(settings, aws), _result_probe(settings, aws)]
    remedy = "start the inference server, or set --health-url (FORWARDER_HEALTH_URL)"
    probes.append(Probe("inference server", partial(_ask_inference, settings), remedy))
    probes.append(Probe("staging folder", partial(ask_staging, settings), "see --stage-folder"))
    if "logging" in settings.hooks:
        remedy = (
            "set --firehose-stream (FORWARDER_FIREHOSE_STREAM) to an active stream, and "
            "--firehose-role-arn (FORWARDER_FIREHOSE_ROLE_ARN) to a role that these credentials may assume"
        )
        probes.append(Probe("firehose", partial(_ask_firehose, settings, aws), remedy))
    return probes


def _broker_probe(settings: Settings, aws: SessionFactory) -> Probe:
    if settings.broker_kind == "sqs":
        remedy = (
            "set --sqs-url (FORWARDER_SQS_QUEUE_URL) to an existing queue that these credentials may read"
        )
        return Probe("broker", partial(ask_sqs, settings, aws), remedy)
    remedy = "start the broker, or set --broker-url (FORWARDER_BROKER_URL), user and password included"
    ask = ask_redis if settings.broker_kind == "redis" else ask_amqp
    remedies = url_remedies(settings.broker_url, BY_FIELD["broker_url"].title)
    return Probe("broker", partial(ask, settings), remedy, remedies)


def _result_probe(settings: Settings, aws: SessionFactory) -> Probe:
    if settings.result_backend.startswith("s3://"):
        remedy = "set --result-backend (FORWARDER_RESULT_BACKEND) to where these credentials may put objects"
        return Probe("results", partial(_ask_s3, settings, aws), remedy)
    remedy = "start Redis, or set --result-backend (FORWARDER_RESULT_BACKEND), user and password included"
    remedies = url_remedies(settings.result_backend, BY_FIELD["result_backend"].title)
    return Probe("results", partial(_ask_redis_results, settings), remedy, remedies)


def _ask_redis_results(settings: Settings) -> str | Caution:
    from forwarder.cli.tasks import impatient_app

    backend: Any = impatient_app(settings, answer_s=TIMEOUT_S).backend
    url = without_password(settings.result_backend)
    key = backend.get_key_for_task(f"forwarder-check-{uuid4()}")
    require_write(backend.client, key, url=url, setting=BY_FIELD["result_backend"].title)
    detail = f"{url} takes results"
    # Results have an expiry: the policies that spare other keys drop them too.
    if policy := evicts(redis_info(backend.client) or {}):
        return Caution(
            f"{detail}, but when its memory is full it drops them ({policy})",
            "set Redis' maxmemory-policy to noeviction",
        )
    return detail


def _ask_s3(settings: Settings, aws: SessionFactory) -> str:
    """Store an object as the worker stores results, and look for one as it does before each task.

    The worker need not be allowed to delete it.
    """
    from forwarder.app import client_app
    from forwarder.cloud.per_process import PerProcess
    from forwarder.cloud.session import s3_client

    s3 = PerProcess(lambda: s3_client(aws(), max_pool_connections=1))
    backend: Any = client_app(settings, s3=s3).backend
    name, text = f"forwarder-check-{uuid4()}", "{}"

    def look() -> None:
        if backend.get(name) != text:
            raise NotWorking(f"{settings.result_backend} did not return what was written")

    backend.set(name, text)
    detail = f"{settings.result_backend} takes results"
    try:
        _insist(look, f"{settings.result_backend} may not be read", "allow s3:GetObject on its objects")
        _insist(
            partial(backend.get, f"{name}-missing"),
            f"{settings.result_backend} calls a missing result denied, and no task would begin",
            "allow s3:ListBucket on the bucket",
        )
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


def _insist(call: Callable[[], object], denied: str, remedy: str) -> None:
    """Make a call that every worker makes. Raises NotWorking where these credentials may not."""
    if not _allowed(call):
        raise NotWorking(denied, remedy=remedy)


def _allowed(call: Callable[[], object]) -> bool:
    """Make a call and return whether these credentials may make it."""
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
