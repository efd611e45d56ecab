"""The two ways that the demo's tasks take: Redis throughout, and SQS with results in S3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forwarder.testing.aws import Moto
from forwarder.testing.aws_resources import create_bucket, create_delivery_stream, create_queue, create_role
from forwarder.testing.producer import Producer, s3_conf, sqs_broker_url, sqs_conf
from forwarder.testing.services import Valkey

QUEUE = "forwarder-demo"
RESULTS_BUCKET = "forwarder-demo-results"
RESULTS_PREFIX = "results/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A broker with a result store and a record stream.

    ``worker_env`` has the worker's settings for all three, ``producer`` is a
    stock Celery client, and ``records_bucket`` in the cloud of ``cloud_env`` is
    where the stream delivers to.
    """

    title: str
    worker_env: Mapping[str, str]
    producer: Producer
    cloud_env: Mapping[str, str]
    records_bucket: str


def redis_way(valkey: Valkey, moto: Moto) -> Way:
    """Return the way through Redis: broker in database 0, results in database 1."""
    broker_url, backend = valkey.database(0), valkey.database(1)
    bucket = "forwarder-demo-records-redis"
    return Way(
        title="Redis broker, Redis results",
        worker_env={
            "FORWARDER_BROKER_URL": broker_url,
            "FORWARDER_RESULT_BACKEND": backend,
            **_logging_hook(moto, bucket=bucket),
        },
        producer=Producer(broker_url=broker_url, backend=backend, queue=QUEUE),
        cloud_env=moto.env,
        records_bucket=bucket,
    )


def sqs_way(moto: Moto) -> Way:
    """Make queue and bucket, which a worker never does, and return the way through SQS and S3."""
    queue_url = create_queue(moto.env, QUEUE)
    create_bucket(moto.env, RESULTS_BUCKET)
    bucket = "forwarder-demo-records-sqs"
    conf = {
        **sqs_conf(moto.env, queue=QUEUE, url=queue_url),
        **s3_conf(moto.env, bucket=RESULTS_BUCKET, prefix=RESULTS_PREFIX),
    }
    return Way(
        title="SQS broker, S3 results",
        worker_env={
            "FORWARDER_BROKER_URL": "sqs://",
            "FORWARDER_SQS_QUEUE_URL": queue_url,
            "FORWARDER_RESULT_BACKEND": f"s3://{RESULTS_BUCKET}/{RESULTS_PREFIX}",
            **_logging_hook(moto, bucket=bucket),
        },
        producer=Producer(broker_url=sqs_broker_url(moto.env), backend="s3://", queue=QUEUE, conf=conf),
        cloud_env=moto.env,
        records_bucket=bucket,
    )


def _logging_hook(moto: Moto, *, bucket: str) -> dict[str, str]:
    """Make a stream that delivers to the bucket, and a role for it; return the worker's settings."""
    create_bucket(moto.env, bucket)
    role_arn = create_role(moto.env, bucket)
    create_delivery_stream(moto.env, bucket, bucket=bucket, role_arn=role_arn)
    return {
        **moto.env,
        "FORWARDER_HOOKS": "logging",
        "FORWARDER_FIREHOSE_STREAM": bucket,
        "FORWARDER_FIREHOSE_ROLE_ARN": role_arn,
        "FORWARDER_ENDPOINT_NAME": "demo",
    }
