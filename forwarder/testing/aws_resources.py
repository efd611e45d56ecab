"""The queues, buckets, roles and streams that tests and the demo need in a cloud.

The worker never makes any of these. Every function takes the environment of a
:class:`forwarder.testing.aws.Cloud` and blocks; botocore's errors pass through.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import boto3

TRUST_ANYBODY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
    }
)

#: Neither a session nor the making of a client is thread-safe.
_one_at_a_time = threading.Lock()


def client(env: Mapping[str, str], service: str) -> Any:
    """Return a boto3 client for ``env`` that takes nothing from our own environment."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    with _one_at_a_time:
        session = _session(*(env[name] for name in names))
        return session.client(service, endpoint_url=env["AWS_ENDPOINT_URL"])  # type: ignore[call-overload]


@functools.cache
def _session(key_id: str, secret: str, region: str) -> boto3.session.Session:
    """Return one session for the same credentials: it reads AWS's models, 0.1 s of CPU, only once."""
    return boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret, region_name=region)


def create_queue(env: Mapping[str, str], name: str, **attributes: str) -> str:
    """Create an SQS queue and return its URL."""
    return str(client(env, "sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])


def create_bucket(env: Mapping[str, str], name: str) -> None:
    """Create an S3 bucket."""
    client(env, "s3").create_bucket(Bucket=name)


def create_role(env: Mapping[str, str], name: str) -> str:
    """Create a role that anybody may assume and return its ARN."""
    role = client(env, "iam").create_role(RoleName=name, AssumeRolePolicyDocument=TRUST_ANYBODY)
    return str(role["Role"]["Arn"])


def create_delivery_stream(env: Mapping[str, str], name: str, *, bucket: str, role_arn: str) -> None:
    """Create a Firehose stream that delivers to a bucket."""
    destination = {"BucketARN": f"arn:aws:s3:::{bucket}", "RoleARN": role_arn}
    client(env, "firehose").create_delivery_stream(
        DeliveryStreamName=name,
        DeliveryStreamType="DirectPut",
        ExtendedS3DestinationConfiguration=destination,
    )


def delivered_records(env: Mapping[str, str], bucket: str) -> Iterator[dict[str, Any]]:
    """Yield every record that Firehose has delivered to the bucket: JSON, one a line."""
    s3 = client(env, "s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            body = s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            for line in body.splitlines():
                yield json.loads(line)
