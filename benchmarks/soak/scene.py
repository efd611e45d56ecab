"""What a soaked worker works with: queue, bucket, stream and role in a local cloud, and its sender."""

from __future__ import annotations

import base64
import json
import random
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.sqs_scene import CountedMoto
from forwarder.testing import aws_resources
from forwarder.testing.processes import Command, clean_env
from forwarder.testing.producer import Producer
from forwarder.testing.services import CHECKOUT, ModelServer

LEASE_S = 60
#: Messages of one call; together they must stay under 1 MiB, as base64 of base64.
BATCH = 10
SLOW_S = 1.0
#: How a stored result shows in the counts of the cloud: what Firehose delivers is not asked for from outside.
STORED = "S3 PUT"


class SoakCloud(CountedMoto):
    """``benchmarks.soak.light_cloud`` in a process of its own."""

    def __init__(self, *, life_s: int) -> None:
        super().__init__()
        self._life_s = life_s

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        options = ["--port", str(self.port), "--life", str(self._life_s)]
        argv = [sys.executable, "-m", "benchmarks.soak.light_cloud", *options]
        return Command(argv=argv, env=clean_env(folder) | self.env | {"PYTHONPATH": str(CHECKOUT)})


class SoakScene:
    """One worker's own queue, bucket and stream; sends its tasks and counts their results.

    ``payload_bytes`` is the largest; sizes are spread evenly over their logarithm. The first
    ``slow`` tasks take a second, so that every slot works and every pool of connections fills.
    """

    def __init__(self, *, cloud: SoakCloud, model: ModelServer, payload_bytes: int, slow: int) -> None:
        name = f"soak-{uuid.uuid4().hex[:8]}"
        url = aws_resources.create_queue(cloud.env, name, VisibilityTimeout=str(LEASE_S))
        aws_resources.create_bucket(cloud.env, name)
        role = aws_resources.create_role(cloud.env, name)
        aws_resources.create_delivery_stream(cloud.env, name, bucket=name, role_arn=role)
        self._cloud = cloud
        self._sqs = aws_resources.client(cloud.env, "sqs")
        self._url = url
        # Stock Celery makes the messages, without the 10 ms that its SQS transport takes to send one.
        self._producer = Producer(broker_url="memory://", backend="disabled://", queue=name)
        self._payload_bytes = payload_bytes
        self._slow = slow
        self._random = random.Random(1)
        self.sent = 0
        self.stored = 0
        self.env: Mapping[str, str] = {
            **cloud.env,
            **model.env,
            "FORWARDER_BROKER_URL": "sqs://",
            "FORWARDER_SQS_QUEUE_URL": url,
            "FORWARDER_QUEUES": name,
            "FORWARDER_RESULT_BACKEND": f"s3://{name}/results/",
            "FORWARDER_HOOKS": "logging",
            "FORWARDER_FIREHOSE_STREAM": name,
            "FORWARDER_FIREHOSE_ROLE_ARN": role,
            "FORWARDER_VISIBILITY_TIMEOUT_S": str(LEASE_S),
        }

    def send(self) -> None:
        """Send a batch of tasks, of random sizes; each one's answer is about as large."""
        with self._producer.app.connection_for_write() as connection:
            channel = connection.default_channel
            messages = [self._message(channel) for _ in range(BATCH)]
        entries = [{"Id": str(index), "MessageBody": body} for index, body in enumerate(messages)]
        self._sqs.send_message_batch(QueueUrl=self._url, Entries=entries)
        self.sent += BATCH

    def _message(self, channel: Any) -> str:
        """Return a message as stock Celery's SQS transport writes it."""
        size = int(2 ** self._random.uniform(6, self._payload_bytes.bit_length() - 1))
        behaviour = {"huge_bytes": size, "sleep_s": SLOW_S if self.sent < self._slow else 0.0}
        self._producer.send({"args": {"text": "x" * size, "behaviour": behaviour}})
        return base64.b64encode(json.dumps(channel._get(self._producer.queue)).encode()).decode()

    def count(self) -> None:
        """Bring ``stored`` up to date."""
        self.stored += self._cloud.counts().get(STORED, 0)

    def close(self) -> None:
        """Close the sender."""
        self._producer.close()
