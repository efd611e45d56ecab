"""``check``, ``submit`` and ``result`` against real services, as a person at a terminal runs them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import clean_env
from forwarder.testing.producer import Producer
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S

WAIT_S = str(PATIENCE_S)


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


Forwarder = Callable[..., Ended]
MakeProducer = Callable[..., Producer]


@pytest.fixture
def forwarder(tmp_path: Path, queue_name: str) -> Forwarder:
    """Run ``python -m forwarder`` to its end in an environment of its own."""

    def run(*args: str, env: Mapping[str, str], stdin: str = "") -> Ended:
        own = clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT), "FORWARDER_QUEUES": queue_name}
        ended = subprocess.run(
            [sys.executable, "-m", "forwarder", *args],
            env=own | dict(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


def on(valkey: Valkey, model_server: ModelServer) -> dict[str, str]:
    return {
        "FORWARDER_BROKER_URL": valkey.database(0),
        "FORWARDER_RESULT_BACKEND": valkey.database(1),
        **model_server.env,
    }


@pytest.fixture
def redis_env(valkey: Valkey, model_server: ModelServer) -> dict[str, str]:
    return on(valkey, model_server)


@pytest.fixture
def aws_env(moto: Moto, model_server: ModelServer, queue_name: str) -> dict[str, str]:
    """SQS, S3 and a Firehose stream behind a role, in a region that AWS_REGION alone names.

    Not the region that kombu and moto fall back on: who does not hear of it finds neither queue nor stream.
    """
    env = moto.env | {"AWS_REGION": "eu-west-1"}
    del env["AWS_DEFAULT_REGION"]
    aws_resources.create_bucket(moto.env, queue_name)  # buckets have one name in all regions
    role = aws_resources.create_role(env, queue_name)
    aws_resources.create_delivery_stream(env, queue_name, bucket=queue_name, role_arn=role)
    return {
        "FORWARDER_BROKER_URL": "sqs://",
        "FORWARDER_SQS_QUEUE_URL": aws_resources.create_queue(env, queue_name),
        "FORWARDER_RESULT_BACKEND": f"s3://{queue_name}/results/",
        "FORWARDER_HOOKS": "logging",
        "FORWARDER_FIREHOSE_STREAM": queue_name,
        "FORWARDER_FIREHOSE_ROLE_ARN": role,
        "CELERY_WORKER_POOL": "gevent",
        **model_server.env,
        **env,
    }


def test_check_passes_where_redis_and_the_inference_server_answer(
    forwarder: Forwarder, redis_env: dict[str, str]
) -> None:
    ended = forwarder("check", env=redis_env)
    assert ended.code == 0, ended.err
    assert ended.out.endswith("a worker would work\n")
    assert "environment FORWARDER_BROKER_URL" in ended.out


def test_check_as_json_tells_settings_sources_and_services(
    forwarder: Forwarder, redis_env: dict[str, str]
) -> None:
    report = json.loads(forwarder("check", "--json", "--concurrency", "7", env=redis_env).out)
    assert report["ok"] is True
    assert report["settings"]["concurrency"] == {"value": "7", "source": "flag --concurrency"}
    names = [service["name"] for service in report["services"]]
    assert names == ["broker", "results", "inference server", "staging folder"]


def test_check_passes_where_every_aws_service_answers(
    forwarder: Forwarder, aws_env: dict[str, str], queue_name: str
) -> None:
    ended = forwarder("check", env=aws_env)
    assert ended.code == 0, ended.out
    assert f"stream {queue_name} is ACTIVE" in ended.out
    assert f"s3://{queue_name}/results/ takes results\n" in ended.out
    listed = aws_resources.client(aws_env, "s3").list_objects_v2(Bucket=queue_name)
    assert listed["KeyCount"] == 0


@pytest.mark.parametrize(
    ("wrong", "service"),
    [
        ({"FORWARDER_SQS_QUEUE_URL": "{url}/123456789012/absent"}, "broker"),
        ({"FORWARDER_RESULT_BACKEND": "s3://absent-bucket/"}, "results"),
        ({"FORWARDER_FIREHOSE_STREAM": "absent"}, "firehose"),
    ],
)
def test_check_names_what_is_missing_in_aws(
    forwarder: Forwarder, aws_env: dict[str, str], moto: Moto, wrong: dict[str, str], service: str
) -> None:
    wrong = {name: value.format(url=moto.url) for name, value in wrong.items()}
    ended = forwarder("check", env=aws_env | wrong)
    assert ended.code == 3
    assert ended.out.endswith(f"a worker would not work: {service}\n")


def test_check_fails_where_sqs_would_move_tasks_away_without_a_result(
    forwarder: Forwarder, aws_env: dict[str, str], queue_name: str
) -> None:
    sqs = aws_resources.client(aws_env, "sqs")
    target = aws_resources.create_queue(aws_env, f"{queue_name}-target")
    attributes = sqs.get_queue_attributes(QueueUrl=target, AttributeNames=["QueueArn"])["Attributes"]
    policy = {"deadLetterTargetArn": attributes["QueueArn"], "maxReceiveCount": "3"}
    sqs.set_queue_attributes(
        QueueUrl=aws_env["FORWARDER_SQS_QUEUE_URL"], Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    ended = forwarder("check", env=aws_env)
    assert ended.code == 3
    assert "maxReceiveCount to at least 6" in ended.out
    ended = forwarder("check", "--max-deliveries", "2", env=aws_env)
    assert ended.code == 0, ended.out


def test_check_warns_where_redis_may_drop_queues_and_results(
    forwarder: Forwarder, redis_env: dict[str, str], valkey: Valkey
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", 2**30)
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            ended = forwarder("check", env=redis_env)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 0)
    assert ended.code == 0, ended.out
    assert [line.split()[:2] for line in ended.out.splitlines() if line.startswith("warn ")] == [
        ["warn", "broker"],
        ["warn", "results"],
    ]


@pytest.fixture
def refusing(model_server: ModelServer) -> Iterator[tuple[redis.Redis, dict[str, str]]]:
    """A Redis server of its own, to be spoilt, and the settings that name it."""
    with Valkey() as own, redis.Redis.from_url(own.url) as client:
        yield client, on(own, model_server)


def test_check_leaves_no_key_behind(
    forwarder: Forwarder, refusing: tuple[redis.Redis, dict[str, str]]
) -> None:
    client, env = refusing
    assert forwarder("check", env=env).code == 0
    assert client.info("keyspace") == {}


@pytest.mark.parametrize(
    ("spoil", "word", "remedy"),
    [
        (lambda client: client.replicaof("127.0.0.1", "1"), "ReadOnlyError", "it is a replica"),
        (lambda client: client.config_set("maxmemory", 1), "OutOfMemoryError", "(maxmemory)"),
    ],
    ids=["replica", "no memory"],
)
def test_a_redis_that_refuses_writes_is_no_broker_and_no_result_store(
    forwarder: Forwarder,
    refusing: tuple[redis.Redis, dict[str, str]],
    spoil: Callable[[redis.Redis], object],
    word: str,
    remedy: str,
) -> None:
    client, env = refusing
    spoil(client)
    ended = forwarder("check", env=env)
    assert ended.code == 3
    assert ended.out.endswith("a worker would not work: broker, results\n")
    assert ended.out.count(f"refuses writes: {word}") == ended.out.count(remedy) == 2
    ended = forwarder("submit", '{"args": 1}', env=env)
    assert ended.code == 3
    assert ended.err == f"Error: the broker answers, but refuses ({word}); see `forwarder check`\n"


@pytest.mark.parametrize("command", [["submit", "{}"], ["dead", "list"]])
def test_a_queue_of_sqs_that_does_not_exist_is_3_and_one_line(
    forwarder: Forwarder, aws_env: dict[str, str], moto: Moto, command: list[str]
) -> None:
    env = aws_env | {"FORWARDER_SQS_QUEUE_URL": f"{moto.url}/123456789012/absent"}
    ended = forwarder(*command, env=env)
    assert ended.code == 3
    assert ended.err.count("\n") == 1
    assert "NonExistentQueue" in ended.err


def test_check_asks_rabbitmq(forwarder: Forwarder, redis_env: dict[str, str], rabbitmq: RabbitMQ) -> None:
    ended = forwarder("check", env=redis_env | {"FORWARDER_BROKER_URL": rabbitmq.url})
    assert ended.code == 0, ended.out
    assert "consumer_timeout" in ended.out


def test_check_fails_with_2_where_the_drain_outlasts_the_grace_period(forwarder: Forwarder) -> None:
    ended = forwarder("check", env={"FORWARDER_TERMINATION_GRACE_S": "30"})
    assert ended.code == 2
    assert "--drain-timeout" in ended.err
    assert ended.err.count("\n") == 1


def test_check_fails_with_3_and_hides_the_password_where_nothing_listens(
    forwarder: Forwarder, redis_env: dict[str, str], nobody: str
) -> None:
    url = f"redis://:hunter2@{nobody}/0"
    env = redis_env | {"FORWARDER_BROKER_URL": url, "FORWARDER_RESULT_BACKEND": url}
    ended = forwarder("check", env=env)
    assert ended.code == 3
    assert "a worker would not work: broker, results" in ended.out
    assert "hunter2" not in ended.out + ended.err


def test_check_fails_while_the_inference_server_is_not_ready(
    forwarder: Forwarder, redis_env: dict[str, str], model_server: ModelServer
) -> None:
    model_server.control(ready=False)
    ended = forwarder("check", env=redis_env)
    assert ended.code == 3
    assert "HTTP 503" in ended.out


def test_check_fails_with_2_where_a_setting_is_wrong(forwarder: Forwarder) -> None:
    ended = forwarder("check", "--concurrency", "none", env={})
    assert ended.code == 2
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("source", ["argument", "standard input"])
def test_a_submitted_task_comes_back_as_its_result(
    forwarder: Forwarder,
    redis_env: dict[str, str],
    worker: Callable[..., Worker],
    source: str,
) -> None:
    worker(env=redis_env)
    payload = json.dumps({"args": {"numbers": [1, 2, 3]}})
    argument, stdin = (payload, "") if source == "argument" else ("-", payload)
    ended = forwarder("submit", argument, "--wait", WAIT_S, env=redis_env, stdin=stdin)
    assert ended.code == 0, ended.err
    task_id, text = ended.out.splitlines()
    assert json.loads(text)["result"]["sum"] == 6
    again = forwarder("result", task_id, env=redis_env)
    assert (again.code, again.out) == (0, f"SUCCESS\n{text}\n")


def test_a_failed_task_exits_with_1_and_prints_its_error_object(
    forwarder: Forwarder, redis_env: dict[str, str], worker: Callable[..., Worker]
) -> None:
    worker(env=redis_env)
    payload = '{"args": 1, "cloudpickle": "gASVAAA="}'
    ended = forwarder("submit", payload, "--wait", WAIT_S, "--task-id", "refused", env=redis_env)
    assert ended.code == 1
    task_id, text = ended.out.splitlines()
    assert task_id == "refused"
    assert json.loads(text)["code"] == "pickle_refused"
    assert forwarder("result", "refused", env=redis_env).out == f"FAILURE\n{text}\n"


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_the_ancestors_command_line_serves_the_ancestors_tasks(
    *,
    worker: Callable[..., Worker],
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
    queue_name: str,
    tmp_path: Path,
    pool: str,
) -> None:
    config = tmp_path / "service--forwarder.yaml"
    config.write_text(
        "forwarder:\n  async:\n    user_port: 1\n    user_hostname: 127.0.0.1\n    batch_route: null\n"
    )
    words = (
        f"--config {config} --set forwarder.async.user_port={model_server.port} "
        "--set forwarder.async.predict_route=/predict --set forwarder.async.healthcheck_route=/readyz "
        f"--queue {queue_name} --task-visibility VISIBILITY_24H --num-workers 2 "
        "--broker-type redis --backend-protocol redis"
    )
    worker(pool=pool, env={"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(valkey.port)}, args=words.split())
    sender = producer(broker_url=valkey.database(3), backend=valkey.database(1))
    sent = sender.send({"args": {"numbers": [1, 2]}}, task="ml_serve.celery_service.exec_func")
    result = sent.get(timeout=PATIENCE_S)
    assert result["status_code"] == 200
    assert json.loads(result["result"])["sum"] == 3  # the ancestor stored the response as a string


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_task_through_sqs_and_s3_comes_back(
    forwarder: Forwarder, aws_env: dict[str, str], worker: Callable[..., Worker], pool: str
) -> None:
    worker(env=aws_env | {"CELERY_WORKER_POOL": pool})
    ended = forwarder("submit", '{"args": {"numbers": [4]}}', "--wait", WAIT_S, env=aws_env)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out.splitlines()[1])["result"]["sum"] == 4


def test_waiting_ends_with_1_when_nobody_takes_the_task(
    forwarder: Forwarder, redis_env: dict[str, str]
) -> None:
    ended = forwarder("submit", '{"args": 1}', "--wait", "0.3", env=redis_env)
    assert ended.code == 1
    assert "no result after 0.3 s" in ended.err


def test_a_task_that_nobody_knows_is_pending(forwarder: Forwarder, redis_env: dict[str, str]) -> None:
    ended = forwarder("result", "nobody-knows-it", "--wait", "0.3", env=redis_env)
    assert (ended.code, ended.out) == (1, "PENDING\n")


def test_submitting_needs_no_result_store(
    forwarder: Forwarder, redis_env: dict[str, str], nobody: str
) -> None:
    env = redis_env | {"FORWARDER_RESULT_BACKEND": f"redis://{nobody}/1"}
    payload = '{"args": "a secret of the sender"}'
    ended = forwarder("submit", payload, "--expires", "60", "--priority", "3", env=env)
    assert ended.code == 0, ended.err


def test_the_payload_is_in_the_message_body_only_and_the_time_of_sending_beside_it(
    forwarder: Forwarder, redis_env: dict[str, str], valkey: Valkey, queue_name: str
) -> None:
    before_s = time.time()
    forwarder("submit", '{"args": "a secret of the sender"}', env=redis_env)
    client = redis.Redis.from_url(valkey.database(0))
    message: dict[str, Any] = json.loads(client.lrange(queue_name, 0, 0)[0])
    assert "secret" not in json.dumps(message["headers"])
    assert message["headers"]["task"] == "forwarder.forward"
    (payload, arrival), *_ = json.loads(base64.b64decode(message["body"]))
    assert payload == {"args": "a secret of the sender"}
    assert before_s <= arrival <= time.time()


@pytest.mark.parametrize("command", [["submit", '{"args": 1}'], ["result", "some-id", "--wait", "5"]])
def test_an_unreachable_service_is_3_within_seconds(
    forwarder: Forwarder, redis_env: dict[str, str], command: list[str], nobody: str
) -> None:
    url = f"redis://:hunter2@{nobody}/0"
    env = redis_env | {"FORWARDER_BROKER_URL": url, "FORWARDER_RESULT_BACKEND": url}
    ended = forwarder(*command, env=env)
    assert ended.code == 3
    assert "can't be reached" in ended.err
    assert "hunter2" not in ended.out + ended.err


def test_a_payload_that_is_no_json_object_is_2_and_is_not_sent(
    forwarder: Forwarder, redis_env: dict[str, str]
) -> None:
    ended = forwarder("submit", "[1]", env=redis_env)
    assert ended.code == 2
    assert ended.out == ""
