"""`forwarder dead` on every broker: what a worker put aside is listed, shown, requeued and purged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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
def dead(tmp_path: Path, queue_name: str, env: dict[str, str]) -> Dead:
    """Run ``forwarder dead …`` to its end."""

    def run(*args: str, env: Mapping[str, str] = env, stdin: str = "") -> subprocess.CompletedProcess[str]:
        own = clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT), "FORWARDER_QUEUES": queue_name}
        return subprocess.run(
            [sys.executable, "-m", "forwarder", "dead", *args],
            env=own | dict(env),
            input=stdin,
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
    worker: StartWorker, sender: Producer, dead: Dead, env: dict[str, str], queue_name: str
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
    text = dead("list", "--limit", "2")
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
    assert len(listed(dead)) == 2

    again = worker(pool="gevent", env=env)
    again.wait_ready()
    with pytest.raises(Exception, match="does not serve"):
        sender.result(ids[0]).get(timeout=PATIENCE_S)
    wait_until(lambda: len(listed(dead)) == 3)
    assert {letter["deliveries"] for letter in listed(dead)} == {1}, "counted anew"
    assert again.stop() == 0

    assert dead("purge", ids[0]).stdout == "purged 1\n"
    assert dead("purge", "--all", stdin="n\n").returncode == 1
    assert len(listed(dead)) == 2
    assert dead("purge", "--all", "--yes").stdout == "purged 2\n"
    assert dead("list").stdout == "no dead letters\n"
    assert sender.result(ids[1]).state == "FAILURE", "the sender's answer stays"


def test_a_broker_that_does_not_answer_is_told(dead: Dead, env: dict[str, str], nobody: str) -> None:
    own = dict(env)
    scheme = own["FORWARDER_BROKER_URL"].partition("://")[0]
    if scheme == "sqs":
        own |= {"AWS_ENDPOINT_URL": f"http://{nobody}", "FORWARDER_SQS_QUEUE_URL": f"http://{nobody}/q"}
    else:
        own["FORWARDER_BROKER_URL"] = f"{scheme}://{nobody}"
    result = dead("list", env=own)
    assert result.returncode == 3, result.stderr
    assert "the broker can't be reached" in result.stderr
