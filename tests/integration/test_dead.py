"""`forwarder dead` on every broker: what a worker put aside is listed, shown, requeued and purged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import redis
from click.testing import CliRunner
from kombu import Connection, Exchange, Queue
from kombu import Producer as KombuProducer

from forwarder.brokers.sqs import dead_letters as sqs_dead_letters
from forwarder.cli.dead import dead as dead_command
from forwarder.testing import aws_resources
from forwarder.testing.processes import clean_env
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from tests.integration.scenes import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

SECRET = "hunter2"
Dead = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["redis", "sqs", "amqp"])
def broker(request: pytest.FixtureRequest, queue_name: str) -> tuple[dict[str, str], str, dict[str, Any]]:
    """A broker as the worker's environment, as the producer's URL, and the producer's configuration."""
    if request.param == "sqs":
        env = request.getfixturevalue("moto").env
        url = aws_resources.create_queue(env, queue_name)
        own = env | {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url}
        own["FORWARDER_SQS_WAIT_S"] = "1"  # a worker that stops waits for its poll
        return own, sqs_broker_url(env), sqs_conf(env, queue=queue_name, url=url)
    url = request.getfixturevalue({"redis": "valkey", "amqp": "rabbitmq"}[request.param]).url
    return {"FORWARDER_BROKER_URL": url}, url, {}


@pytest.fixture
def env(
    broker: tuple[dict[str, str], str, dict[str, Any]], valkey: Valkey, model_server: ModelServer
) -> dict[str, str]:
    settings = {"FORWARDER_RESULT_BACKEND": valkey.database(1), "FORWARDER_VISIBILITY_TIMEOUT_S": "30"}
    return broker[0] | settings | model_server.env


@pytest.fixture
def sender(
    broker: tuple[dict[str, str], str, dict[str, Any]], producer: MakeProducer, valkey: Valkey
) -> Producer:
    return producer(broker_url=broker[1], backend=valkey.database(1), conf=broker[2])


@pytest.fixture
def own(tmp_path: Path, queue_name: str, env: dict[str, str]) -> dict[str, str]:
    """All that an operator's process has of ours."""
    return clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT), "FORWARDER_QUEUES": queue_name} | env


@pytest.fixture
def dead(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Dead:
    """Run ``forwarder dead …`` in this process: the imports of a process take longer than what it does."""
    for name in os.environ.keys() - own.keys():
        if name.startswith(("AWS_", "FORWARDER_", "CELERY_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sqs_dead_letters, "WAIT_S", 0)  # Moto asks no servers that might be slow

    def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        result = CliRunner(env=own).invoke(dead_command, args, input=stdin, standalone_mode=False)
        assert result.exception is None or isinstance(result.exception, click.Abort), result.exception
        code = result.exit_code if result.exception else result.return_value
        return subprocess.CompletedProcess(args, code, result.stdout, result.stderr)

    return run


@pytest.fixture
def dead_process(own: dict[str, str]) -> Dead:
    """Run ``forwarder dead …`` as an operator does."""

    def run(*args: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "forwarder", "dead", *args],
            env=own | settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


def listed(dead: Dead) -> list[dict[str, Any]]:
    result = dead("list", "--json")
    assert result.returncode == 0, result.stderr
    letters: list[dict[str, Any]] = json.loads(result.stdout)
    return letters


def test_what_a_worker_put_aside_is_listed_shown_requeued_and_purged(
    worker: StartWorker,
    sender: Producer,
    dead: Dead,
    dead_process: Dead,
    env: dict[str, str],
    queue_name: str,
) -> None:
    assert dead("list").stdout == "no dead letters\n", "there is no such queue yet"
    running = worker(pool="gevent", env=env)
    running.wait_ready()
    payload = {"args": {"secret": SECRET}}
    results = [sender.send(payload, task="somebody.elses", task_id=f"{queue_name}-{n}") for n in range(3)]
    for result in results:
        with pytest.raises(Exception, match="does not serve"):
            result.get(timeout=PATIENCE_S)
    wait_until(lambda: len(listed(dead)) == 3)
    assert running.stop() == 0
    ids = [result.id for result in results]

    letters = listed(dead)
    assert sorted(letter["id"] for letter in letters) == ids
    assert {letter["code"] for letter in letters} == {"unknown_task"}
    assert {(letter["queue"], letter["deliveries"]) for letter in letters} == {(queue_name, 1)}
    text = dead_process("list", "--limit", "2")
    assert len(text.stdout.splitlines()) == 3
    assert "more than 2" in text.stderr

    shown = dead("show", ids[1])
    assert shown.returncode == 0
    assert "unknown_task" in shown.stdout
    assert SECRET not in shown.stdout
    assert SECRET in dead("show", ids[1], "--payload").stdout
    assert dead("show", "nobody").returncode == 1

    requeued = dead("requeue", ids[0], "nobody")
    assert (requeued.returncode, requeued.stdout) == (1, "requeued 1\n")
    assert sender.result(ids[0]).state == "PENDING"
    assert sender.result(ids[1]).state == "FAILURE"
    assert sorted(letter["id"] for letter in listed(dead)) == ids[1:]

    again = worker(pool="gevent", env=env)
    again.wait_ready()
    with pytest.raises(Exception, match="does not serve"):
        sender.result(ids[0]).get(timeout=PATIENCE_S)
    wait_until(lambda: len(listed(dead)) == 3)
    assert again.stop() == 0
    letters = listed(dead)
    assert sorted(letter["id"] for letter in letters) == ids
    assert {letter["deliveries"] for letter in letters} == {1}, "counted anew"

    assert dead("purge", "--all", stdin="n\n").returncode == 1
    assert dead("purge", ids[0]).stdout == "purged 1\n"
    assert dead("purge", "--all", "--yes").stdout == "purged 2\n"
    assert dead("list").stdout == "no dead letters\n"
    assert sender.result(ids[1]).state == "FAILURE", "the sender's answer stays"


def test_the_line_of_a_refused_message_names_its_letter_and_its_size(
    worker: StartWorker, sender: Producer, dead: Dead, env: dict[str, str], queue_name: str
) -> None:
    push(env, queue_name, "garbage!")
    sender.send({"args": {}}, task="somebody.elses", task_id=queue_name, compression="gzip")
    running = worker(pool="gevent", env=env | {"FORWARDER_LOG_FORMAT": "json"})
    running.wait_ready()
    wait_until(lambda: len(listed(dead)) == 2)
    lines = [json.loads(line) for line in running.log().splitlines()]
    refused = [line for line in lines if line["event"] == "message_refused"]
    told = sorted((line["letter_id"], line["body_bytes"]) for line in refused)
    assert told == sorted((letter["id"], letter["body_bytes"]) for letter in listed(dead))
    [(garbage, size), (named, _)] = sorted(told, key=lambda one: one[0] == queue_name)
    assert (garbage[:5], size, named) == ("body-", len("garbage!"), queue_name)
    assert dead("show", garbage).returncode == 0


def push(env: Mapping[str, str], queue_name: str, text: str) -> None:
    """Put a message into the queue that is none of Celery's."""
    url = env["FORWARDER_BROKER_URL"]
    if url == "sqs://":
        queue_url = env["FORWARDER_SQS_QUEUE_URL"]
        aws_resources.client(env, "sqs").send_message(QueueUrl=queue_url, MessageBody=text)
    elif url.startswith("redis"):
        redis.Redis.from_url(url).lpush(queue_name, text)
    else:
        with Connection(url) as connection:
            to_it = KombuProducer(connection.default_channel, exchange=Exchange(""), routing_key=queue_name)
            Queue(queue_name, channel=connection.default_channel).declare()
            to_it.publish(text, content_type="text/plain", content_encoding="utf-8")


def test_a_broker_that_does_not_answer_is_told(dead_process: Dead, env: dict[str, str], nobody: str) -> None:
    scheme = env["FORWARDER_BROKER_URL"].partition("://")[0]
    if scheme == "sqs":
        result = dead_process(
            "list", AWS_ENDPOINT_URL=f"http://{nobody}", FORWARDER_SQS_QUEUE_URL=f"http://{nobody}/q"
        )
    else:
        result = dead_process("list", FORWARDER_BROKER_URL=f"{scheme}://{nobody}")
    assert result.returncode == 3, result.stderr
    assert "the broker can't be reached" in result.stderr
