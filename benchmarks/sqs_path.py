"""The forwarder beside stock Celery on SQS, S3 and Firehose: AWS calls and CPU a task, in one run.

    scripts/bench sqs                 about five minutes
    scripts/bench sqs --runs 1 --tasks 200 --systems forwarder

Every worker has the same moto server (which counts the calls), the same model server without
inference time, a backlog to work off, and one Firehose record for each task. CPU time is what
compares: moto takes longer than AWS, so tasks a second say nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from rich.console import Console
from rich.table import Table

from benchmarks.redis_path import Bench, EchoServer, cpu_s
from benchmarks.systems import OWN, System
from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import Command, Process, clean_env
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.services import CHECKOUT

REFERENCE = "celery gevent, shared backend"
#: Seconds that a worker may take for a task.
SLOWEST_S = 2.0
#: A poll that began before the workers were stopped takes some messages with it; they come again.
LEASE_S = 60

Row = dict[str, Any]


class CountedMoto(Moto):
    """``benchmarks.counted_moto`` in a process of its own."""

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        argv = [sys.executable, "-m", "benchmarks.counted_moto", "--port", str(self.port)]
        return Command(argv=argv, env=clean_env(folder) | self.env | {"PYTHONPATH": str(CHECKOUT)})

    def counts(self) -> dict[str, int]:
        """Return the calls since the last look."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/counts")
            counts: dict[str, int] = json.load(connection.getresponse())
        finally:
            connection.close()
        return counts


def _forwarder(pool: str) -> System:
    return System(
        name=f"forwarder {pool}",
        sender="",
        command=("python", "-m", "forwarder"),
        ready=" ready.",
        env={"CELERY_WORKER_POOL": pool, "FORWARDER_HOOKS": "logging", "FORWARDER_BROKER_URL": "sqs://"},
    )


def _celery(name: str, **env: str) -> System:
    """Return stock Celery. Under gevent only: its prefork needs pycurl for SQS."""
    arguments = ("-A", "benchmarks.rivals.sqs_rival", "worker", "-P", "gevent", "-c", "{n}", "-l", "INFO")
    return System(name=name, sender="", command=("celery", *arguments), ready=" ready.", bin=OWN, env=env)


SYSTEMS = (
    _forwarder("gevent"),
    _forwarder("prefork"),
    _celery("celery gevent"),
    _celery(REFERENCE, BENCH_TUNED="1"),
)


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

    def send(self, tasks: int) -> None:
        """Send tasks as users do, by stock Celery."""
        conf = sqs_conf(self.moto.env, queue=self.name, url=self.url)
        os.environ.update(self.moto.env)
        producer = Producer(
            broker_url=sqs_broker_url(self.moto.env), backend="disabled://", queue=self.name, conf=conf
        )
        for number in range(tasks):
            producer.send({"args": {"id": number, "sleep_s": 0.0, "text": "x" * 200}})
        producer.close()

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


def measure(scene: Scene, system: System, *, in_flight: int, tasks: int) -> Row:
    """Run one worker: warm it up, then let it work off a backlog."""
    where = dict(scene.where) | clean_env(Path("/nonexistent"))
    worker: Process = system.start(where, in_flight=in_flight, cpu=None)
    try:
        scene.send(2 * in_flight)
        scene.wait_done(2 * in_flight)
        Bench.signal(worker, signal.SIGSTOP)  # the sender's speed is not part of the figures
        scene.send(tasks)
        scene.moto.counts()
        before_s = cpu_s(worker.pid)
        Bench.signal(worker, signal.SIGCONT)
        scene.wait_done(tasks)
        used_s, counts = cpu_s(worker.pid) - before_s, scene.moto.counts()
    finally:
        worker.stop()
    calls = {name: number / tasks for name, number in sorted(counts.items())}
    besides = sum(number for name, number in calls.items() if not name.startswith("Firehose"))
    return {"system": system.name, "cpu_ms": 1000 * used_s / tasks, "calls_besides": besides, "calls": calls}


def medians(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each system."""
    found = []
    for name in dict.fromkeys(row["system"] for row in rows):
        group = [row for row in rows if row["system"] == name]
        operations = sorted({each for row in group for each in row["calls"]})
        found.append(
            {
                "system": name,
                "cpu_ms": statistics.median(row["cpu_ms"] for row in group),
                "cpu_spread_ms": max(r["cpu_ms"] for r in group) - min(r["cpu_ms"] for r in group),
                "calls_besides": statistics.median(row["calls_besides"] for row in group),
                "calls": {
                    each: statistics.median(row["calls"].get(each, 0.0) for row in group)
                    for each in operations
                },
            }
        )
    base = [row["cpu_ms"] for row in found if row["system"] == REFERENCE]
    for row in found:
        row["ratio"] = row["cpu_ms"] / base[0] if base else float("nan")
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("worker", title="SQS, S3, Firehose", title_justify="left")
    for title in ("CPU ms/task", "of stock", "calls/task besides Firehose", "calls/task"):
        table.add_column(title, justify="right")
    for row in rows:
        calls = "\n".join(f"{name} {number:.2f}" for name, number in row["calls"].items() if number >= 0.005)
        figures = (f"{row['cpu_ms']:.3g}", f"{row['ratio']:.2f}", f"{row['calls_besides']:.2f}")
        table.add_row(row["system"], *figures, calls, end_section=True)
    Console().print(table)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench sqs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds; the medians are shown (default: 3)")
    parser.add_argument("--tasks", type=int, default=300, help="of the backlog (default: 300)")
    parser.add_argument("--in-flight", type=int, default=20, metavar="N")
    parser.add_argument("--systems", default="", help="parts of names, with commas between (default: all)")
    parser.add_argument("--json", type=Path, default=CHECKOUT / "benchmarks/results/sqs.json", metavar="FILE")
    options = parser.parse_args()
    parts = options.systems.split(",")
    systems = [system for system in SYSTEMS if any(part in system.name for part in parts)]
    rows: list[Row] = []
    with CountedMoto() as moto, EchoServer() as echo:
        for number in range(options.runs):
            for system in systems:
                print(f"run {number + 1}: {system.name}", file=sys.stderr)
                with scene(moto, echo) as made:
                    rows.append(measure(made, system, in_flight=options.in_flight, tasks=options.tasks))
    found = medians(rows)
    show(found)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"medians": found, "runs": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
