"""What a worker on SQS, S3 and Firehose works with: moto's server, which counts, and a queue of its own."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.redis_path import EchoServer
from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import Command, clean_env
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.services import CHECKOUT

#: Seconds that a worker may take for a task.
SLOWEST_S = 2.0
#: A poll that began before the workers were stopped takes some messages with it; they come again.
LEASE_S = 60


class CountedMoto(Moto):
    """``benchmarks.counted_moto`` in a process of its own."""

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        argv = [sys.executable, "-m", "benchmarks.counted_moto", "--port", str(self.port)]
        return Command(argv=argv, env=clean_env(folder) | self.env | {"PYTHONPATH": str(CHECKOUT)})

    def counts(self) -> dict[str, int]:
        """Return the calls since the last look, by service and operation."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/counts")
            counts: dict[str, int] = json.load(connection.getresponse())
        finally:
            connection.close()
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One worker's own queue, bucket and stream."""

    moto: CountedMoto
    echo: EchoServer
    sqs: Any
    url: str
    name: str

    @property
    def where(self) -> Mapping[str, str]:
        """Return the settings that lead every worker to them."""
        predict = f"{self.echo.url}/predict"
        return self.moto.env | {
            "BENCH_QUEUE": self.name,
            "BENCH_QUEUE_URL": self.url,
            "BENCH_BUCKET": self.name,
            "BENCH_PREDICT_URL": predict,
            "FORWARDER_QUEUES": self.name,
            "FORWARDER_SQS_QUEUE_URL": self.url,
            "FORWARDER_RESULT_BACKEND": f"s3://{self.name}/results/",
            "FORWARDER_FIREHOSE_STREAM": self.name,
            "FORWARDER_PREDICT_URL": predict,
            "FORWARDER_HEALTH_URL": f"{self.echo.url}/readyz",
            "FORWARDER_VISIBILITY_TIMEOUT_S": str(LEASE_S),
        }

    def send(self, tasks: int) -> float:
        """Send tasks as users do, by stock Celery; return when the last was in the queue (``time.time``)."""
        conf = sqs_conf(self.moto.env, queue=self.name, url=self.url)
        os.environ.update(self.moto.env)
        producer = Producer(
            broker_url=sqs_broker_url(self.moto.env), backend="disabled://", queue=self.name, conf=conf
        )
        for number in range(tasks):
            producer.send({"args": {"id": number, "sleep_s": 0.0, "text": "x" * 200}})
        sent = time.time()
        producer.close()
        return sent

    def wait_done(self, tasks: int) -> None:
        """Block until every message is deleted. Raises TimeoutError."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        deadline = time.monotonic() + 60 + SLOWEST_S * tasks
        while time.monotonic() < deadline:
            left = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
            if set(left.values()) == {"0"}:
                return
            time.sleep(0.2)
        raise TimeoutError(f"of {tasks} messages {left} are left")


@contextmanager
def scene(moto: CountedMoto, echo: EchoServer) -> Iterator[Scene]:
    """Make a worker's queue, bucket and stream."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    url = aws_resources.create_queue(moto.env, name, VisibilityTimeout=str(LEASE_S))
    aws_resources.create_bucket(moto.env, name)
    role = aws_resources.create_role(moto.env, name)
    aws_resources.create_delivery_stream(moto.env, name, bucket=name, role_arn=role)
    sqs = boto3.client(
        "sqs",
        endpoint_url=moto.url,
        region_name=moto.env["AWS_REGION"],
        aws_access_key_id=moto.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=moto.env["AWS_SECRET_ACCESS_KEY"],
        config=Config(user_agent_extra="bench"),
    )
    yield Scene(moto=moto, echo=echo, sqs=sqs, url=url, name=name)
