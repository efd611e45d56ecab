"""Datadog's test agent, and what is traced: a worker and a producer on any broker."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.processes import Command, clean_env, free_port
from forwarder.testing.producer import Producer, s3_conf
from forwarder.testing.services import Service, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S, RedisScene, queue_on, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

BIN = Path(sys.executable).parent
#: A tracer that sends nothing but spans, and those soon.
QUIET = {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_WRITER_INTERVAL_SECONDS": "0.2",
}

#: A stock producer that is traced, as a web service that takes a request would be.
TRACED_PRODUCER = """
import json, sys
from celery import Celery
from ddtrace.trace import tracer
url, backend, queue, conf, payload = sys.argv[1:]
app = Celery(broker=url, backend=backend)
app.conf.update(json.loads(conf))
with tracer.trace("web.request") as span:
    args = (json.loads(payload),)
    app.send_task("forwarder.forward", args=args, queue=queue, task_id=queue + "-traced")
tracer.flush()
print(json.dumps({"trace_id": span.trace_id, "span_id": span.span_id}))
"""


class Agent(Service):
    """Datadog's test agent."""

    name = "ddapm-test-agent"

    def command(self, folder: Path) -> Command:
        otlp = [f"--otlp-{kind}-port={free_port()}" for kind in ("http", "grpc")]
        argv = [str(BIN / "ddapm-test-agent"), "--host", "127.0.0.1", "--port", str(self.port)]
        return Command(
            argv=[*argv, *otlp, "--web-ui-port=0", "--disable-llmobs-data-forwarding"],
            env=clean_env(folder),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            return bool(self._get("/info"))
        except (OSError, urllib.error.URLError):
            return False

    def clear(self) -> None:
        """Forget every trace."""
        self._get("/test/session/clear")

    def spans(self) -> list[dict[str, Any]]:
        """Return every span that arrived."""
        return [span for trace in json.loads(self._get("/test/session/traces")) for span in trace]

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return bytes(answer.read())

    def spans_named(self, name: str, number: int = 1) -> list[dict[str, Any]]:
        """Wait until so many spans of this name have arrived and return them."""

        def found() -> list[dict[str, Any]]:
            return [span for span in self.spans() if span["name"] == name]

        wait_until(lambda: len(found()) >= number, f"{number} of {name}")
        return found()


@dataclass(frozen=True, slots=True)
class TracedScene:
    """A queue on one broker, its worker's settings and its producer's; on SQS results are in S3."""

    env: dict[str, str]
    url: str
    backend: str
    conf: dict[str, Any]
    sender: Producer
    worker: StartWorker

    def send_traced(self, agent: Agent, payload: Mapping[str, Any]) -> dict[str, int]:
        """Send the task ``<queue>-traced`` from a traced producer; return the ids of its span."""
        sent = subprocess.run(
            [str(BIN / "ddtrace-run"), sys.executable, "-c", TRACED_PRODUCER,
             self.url, self.backend, self.sender.queue, json.dumps(self.conf), json.dumps(payload)],
            env=clean_env(Path("/tmp")) | QUIET
            | {"DD_TRACE_AGENT_URL": agent.url, "DD_CELERY_DISTRIBUTED_TRACING": "true"},
            capture_output=True, text=True, check=True, timeout=PATIENCE_S,
        )  # fmt: skip
        return dict(json.loads(sent.stdout.splitlines()[-1]))


def scene_on(
    broker: str,
    request: pytest.FixtureRequest,
    *,
    queue: str,
    valkey: Valkey,
    producer: MakeProducer,
    worker: StartWorker,
) -> TracedScene:
    """Return the queue on ``redis``, ``amqp`` or ``sqs``, with its sender and no worker yet."""
    place = queue_on(broker, request, queue)
    results, backend, conf = valkey.url, valkey.url, place.conf
    if broker == "sqs":
        aws_resources.create_bucket(place.env, queue)
        results, backend = f"s3://{queue}/results/", "s3://"
        conf = conf | s3_conf(place.env, bucket=queue, prefix="results/")
    sender = producer(broker_url=place.url, backend=backend, conf=conf)
    env = place.env | {"FORWARDER_RESULT_BACKEND": results}
    return TracedScene(env, place.url, backend, conf, sender, worker)


def traced(scene: TracedScene | RedisScene, pool: str, agent_url: str, *envs: Mapping[str, str]) -> Worker:
    """Start a worker through ``ddtrace-run`` that reports to the agent, and wait until it consumes."""
    env = scene.env | QUIET | {"DD_TRACE_AGENT_URL": agent_url}
    for each in envs:
        env |= each
    worker = scene.worker(pool=pool, env=env, ddtrace=True)
    worker.wait_ready()
    return worker
