"""Bad input of every kind: a code for its sender, and nothing else is lost by it."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import redis
from kombu import Connection, Exchange
from kombu import Producer as KombuProducer

from forwarder.testing.aws import Moto
from forwarder.testing.aws_resources import client, create_queue
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, POOLS

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

SECRET = "payload-text-that-must-not-leak"
PROTOCOL_1 = b'{"task": "forwarder.forward", "id": "\\ud800", "args": [{}], "kwargs": {}}'


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def failure(sender: Producer, task_id: str) -> dict[str, Any]:
    """Wait for a task's failure and return its error object."""
    result = sender.result(task_id)
    with pytest.raises(Exception):  # noqa: B017, PT011 - any class: Celery makes it up from the name
        result.get(timeout=PATIENCE_S)
    assert result.state == "FAILURE"
    backend: Any = sender.app.backend
    meta = json.loads(backend.get(backend.get_key_for_task(task_id)))
    custom = json.loads(meta["result"]["custom"])
    assert set(custom) == {"error", "error_metadata", "code"}
    assert SECRET not in json.dumps(meta)
    assert meta["result"]["exc_type"]
    assert meta["traceback"] is None
    return dict(custom)


def message(queue: str, body: bytes, **headers: Any) -> tuple[str, str]:
    """Return a task id and a queue item as a producer in another language would write it."""
    task_id = str(uuid.uuid4())
    item = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": task_id, "task": "forwarder.forward", "lang": "go", **headers},
        "properties": {
            "correlation_id": task_id,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    return task_id, json.dumps(item)


@pytest.mark.parametrize("pool", POOLS)
def test_every_bad_task_gets_its_code_and_the_good_ones_their_results(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    env = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": valkey.url}
    running = worker(pool=pool, env=env | model_server.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    broker = redis.Redis.from_url(valkey.url)
    now = datetime.now(UTC)

    expected: dict[str, str] = {}
    good: list[str] = []

    def send(code: str | None, payload: Any, *args: Any, **options: Any) -> None:
        task_id = sender.send(payload, *args, **options).id
        if code is None:
            good.append(task_id)
        else:
            expected[task_id] = code

    def push(code: str | None, body: bytes, **headers: Any) -> None:
        task_id, item = message(queue_name, body, **headers)
        broker.lpush(queue_name, item)
        if code is not None:
            expected[task_id] = code

    send(None, {"args": {"numbers": [1]}})
    send("invalid_payload", [SECRET])
    send("invalid_payload", SECRET)
    send("invalid_payload", None)
    send("invalid_payload", {"args": None})
    send(None, {"numbers": [1]})  # no args: sent whole
    send(None, {"args": {"numbers": [1]}, "unknown": SECRET})
    send(None, {"args": {"numbers": [1], "filler": "x" * 5_000_000}})
    send("invalid_payload", {"args": {"x": float("nan"), "y": SECRET}})
    send("pickle_refused", {"args": {}, "cloudpickle": SECRET})
    send("pickle_refused", {"args": {}, "return_pickled": True})
    send("invalid_payload", {"args": {}, "destination_path": "file:///etc/passwd"})
    send("invalid_payload", {"url": "http://169.254.169.254/"})
    send("expired", {"args": {"numbers": [1]}}, expires=now - timedelta(seconds=60))
    send(None, {"args": {"numbers": [1]}}, "when it rained")
    send(None, {"args": {"numbers": [1]}}, (now + timedelta(days=400)).isoformat())
    send(None, {"args": {"numbers": [1]}}, None, "third", {"fourth": SECRET})
    send("unknown_task", {"args": {}}, task="somebody.elses_task")
    push("invalid_payload", b"[[], {}, {}]")
    push("invalid_message", b'[[{"args": {"text": "' + SECRET.encode() + b'"}}, ')
    push("invalid_message", b'[[{"args": "\xff\xfe\xff"}], {}, {}]')
    push("invalid_message", f"[[{nested(100_000)}], {{}}, {{}}]".encode())
    push("invalid_payload", f"[[{nested(300)}], {{}}, {{}}]".encode())
    push("invalid_message", b'{"args": "not a list"}')
    push("invalid_message", b'[[{"args": {}}], ["no object"], {}]')
    push("invalid_message", b'[[{"args": {}}], {}, ["no object"]]')
    push("invalid_message", b'[[{"args": {}}], {}, {"forwarder_dead": 6}]')
    push("invalid_message", b"[[{}], {}, {}]", expires="whenever")
    push("invalid_message", b"[[{}], {}, {}]", task={"no": "name"})
    unreadable = (
        "not json at all " + SECRET,
        "[]",
        "null",
        '"text"',
        "{}",
        '{"body": 5, "properties": 7}',
        message(queue_name, b"[[{}], {}, {}]")[1].replace('"id": ', '"no_id": '),
        message(queue_name, b"[[{}], {}, {}]", id="\ud800")[1],
        message(queue_name, PROTOCOL_1)[1].replace('"id": ', '"no_id": ').replace('"task": ', '"no_task": '),
        b"\xff\xfe",
    )
    broker.lpush(queue_name, *unreadable)
    send(None, {"args": {"numbers": [1]}})

    codes = {task_id: failure(sender, task_id)["code"] for task_id in expected}
    assert codes == expected
    for task_id in good:
        assert sender.result(task_id).get(timeout=PATIENCE_S)["status_code"] == 200
    assert running.alive
    assert SECRET not in running.log()
    assert running.stop() == 0
    assert broker.llen(queue_name) == 0
    assert broker.hlen(f"forwarder:{{{queue_name}}}:unacked") == 0
    refused = sum(code in ("invalid_message", "unknown_task") for code in expected.values())
    assert broker.llen(f"{queue_name}.dead") == refused + len(unreadable)


BAD_ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"answer": "text"}, "invalid_response"),
    ({"answer": "empty"}, "empty_response"),
    ({"answer": "nan"}, "invalid_response"),
    ({"answer": "deep"}, "invalid_response"),
    ({"huge_bytes": 2_000_000}, "response_too_large"),
    ({"trickle_s": 0.2}, "inference_timeout"),
    ({"trickle_head_s": 0.2}, "inference_timeout"),
    (HELD, "inference_timeout"),
    ({"cut": True}, "inference_unreachable"),
    ({"status": 503}, "inference_busy"),
]

SUMS = {"id": None, "sum": 1, "weighted_sum": 1, "sum_of_squares": 1}
OTHER_ANSWERS: list[tuple[dict[str, Any], Any, int]] = [
    ({"status": 404}, SUMS, 404),
    ({"status": 302}, SUMS, 302),
    ({"status": 500, "answer": "html"}, "<html><body><h1>Internal Server Error</h1></body></html>", 500),
    ({"status": 500, "answer": "empty"}, None, 500),
    ({"close": "silent"}, SUMS, 200),
    ({"close": "announced"}, SUMS, 200),
]


@pytest.mark.parametrize("bad_answers", POOLS, indirect=True)
def test_every_bad_answer_gets_its_code(bad_answers: tuple[Producer, Any]) -> None:
    sender, running = bad_answers
    sent = [
        (sender.send({"args": {"numbers": [1], "behaviour": behaviour}}).id, code)
        for behaviour, code in BAD_ANSWERS
    ]
    assert [failure(sender, task_id)["code"] for task_id, _ in sent] == [code for _, code in sent]
    assert sender.send({"args": {"numbers": [2]}}).get(timeout=PATIENCE_S)["result"]["sum"] == 2
    assert running.alive


def test_other_answers_are_results(bad_answers: tuple[Producer, Any]) -> None:
    sender, _ = bad_answers
    sent = [
        (
            sender.send({"args": {"numbers": [1], "behaviour": behaviour}}),
            {"result": result, "status_code": status},
        )
        for behaviour, result, status in OTHER_ANSWERS
    ]
    assert [result.get(timeout=PATIENCE_S) for result, _ in sent] == [expected for _, expected in sent]


def test_a_busy_server_is_asked_again_until_it_answers(
    bad_answers: tuple[Producer, Any], model_server: ModelServer
) -> None:
    sender, _ = bad_answers
    behaviours = {
        "a": {"busy": 1, "retry_after": 1},
        "b": {"busy": 1, "status": 529},
        "c": {"busy": 1, "status": 429},
    }
    sent = [sender.send({"args": {"id": key, "behaviour": how}}) for key, how in behaviours.items()]
    assert [result.get(timeout=PATIENCE_S)["status_code"] for result in sent] == [200, 200, 200]
    assert model_server.stats()["by_id"] == {"a": 2, "b": 2, "c": 2}


@pytest.fixture
def bad_answers(
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    model_server: ModelServer,
) -> tuple[Producer, Any]:
    """A worker with short deadlines, and its producer."""
    env = {
        "FORWARDER_BROKER_URL": valkey.url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
        "FORWARDER_CONCURRENCY": "10",
        "FORWARDER_TASK_TIMEOUT_S": "6",
        "FORWARDER_READ_TIMEOUT_S": "3",
        "FORWARDER_RESPONSE_BYTES_MAX": "1000000",
        "FORWARDER_RETRY_SLOT_S": "3",
        "FORWARDER_MAX_RETRIES": "1",
    }
    running = worker(pool=getattr(request, "param", "gevent"), env=env | model_server.env)
    running.wait_ready()
    return producer(broker_url=valkey.url, backend=valkey.url), running


def test_garbage_on_sqs_does_not_stop_the_worker(
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    moto: Moto,
    model_server: ModelServer,
) -> None:
    url = create_queue(moto.env, queue_name)
    env = moto.env | {
        "FORWARDER_BROKER_URL": "sqs://",
        "FORWARDER_SQS_QUEUE_URL": url,
        "FORWARDER_RESULT_BACKEND": valkey.url,
    }
    for body in ("garbage " + SECRET, "[]", base64.b64encode(b"\xff\xfe").decode(), '{"properties": 5}'):
        client(moto.env, "sqs").send_message(QueueUrl=url, MessageBody=body)
    running = worker(pool="gevent", env=env | model_server.env)
    running.wait_ready()
    conf = sqs_conf(moto.env, queue=queue_name, url=url)
    sender = producer(broker_url=sqs_broker_url(moto.env), backend=valkey.url, conf=conf)
    assert sender.send({"args": {"numbers": [1]}}).get(timeout=PATIENCE_S)["status_code"] == 200
    assert running.alive
    assert running.log().count("code=invalid_message") == 4
    assert SECRET not in running.log()


def test_garbage_on_rabbitmq_does_not_stop_the_worker(
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    rabbitmq: RabbitMQ,
    model_server: ModelServer,
) -> None:
    env = {"FORWARDER_BROKER_URL": rabbitmq.url, "FORWARDER_RESULT_BACKEND": valkey.url}
    running = worker(pool="prefork", env=env | model_server.env)
    running.wait_ready()
    with Connection(rabbitmq.url) as connection:
        raw = KombuProducer(connection.default_channel, exchange=Exchange(""), routing_key=queue_name)
        raw.publish(b"\xff" + SECRET.encode(), content_type="application/json", content_encoding="utf-8")
        raw.publish(b"gASVCg==", content_type="application/x-python-serialize", content_encoding="binary")
        raw.publish(b"[]", content_type="application/json", content_encoding="utf-8", headers={"task": 5})
    sender = producer(broker_url=rabbitmq.url, backend=valkey.url)
    assert sender.send({"args": {"numbers": [1]}}).get(timeout=PATIENCE_S)["status_code"] == 200
    assert running.alive
    assert SECRET not in running.log()


def test_a_task_that_meets_a_busy_server_too_long_goes_back_to_the_queue(
    bad_answers: tuple[Producer, Any], model_server: ModelServer
) -> None:
    """The slot's budget is 3 s here: the task goes back once and is done by its second delivery."""
    sender, running = bad_answers
    body = {"id": "back", "numbers": [1], "behaviour": {"busy": 4, "retry_after": 1}}
    assert sender.send({"args": body}).get(timeout=PATIENCE_S)["status_code"] == 200
    assert "action=go_back" in running.log()
    assert model_server.stats()["by_id"]["back"] == 5
