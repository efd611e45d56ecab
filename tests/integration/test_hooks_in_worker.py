"""Hooks as the worker runs them: after the store, and never in the way of a result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from standardwebhooks import Webhook

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import sqs_broker_url, sqs_conf
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import HELD, POOLS, RedisScene, served, total

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Takes callbacks, and notes what the result store held when each came."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.stored: list[str] = []
        self.lookup: Any = None
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                receiver.stored.append(receiver.lookup(body["task_id"]))
                receiver.bodies.append(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.headers.append(headers | {"raw": raw.decode()})
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/done"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with served(made.server):
        yield made


@pytest.mark.parametrize("pool", POOLS)
def test_a_callback_comes_after_the_result_is_stored(
    pool: str, redis_scene: RedisScene, worker: StartWorker, receiver: Receiver
) -> None:
    sender = redis_scene.sender
    receiver.lookup = lambda task_id: sender.result(task_id).state
    env = {
        "FORWARDER_HOOKS": "callback",
        "FORWARDER_CALLBACK_URL": receiver.url,
        "FORWARDER_CALLBACK_SECRET": SECRET,
        "FORWARDER_USER_ID": "user-7",
    }
    running = worker(pool=pool, env=redis_scene.env | env)
    running.wait_ready()
    good = sender.send({"args": {"numbers": [1, 2]}})
    bad = sender.send([1])
    assert total(good) == 3
    with pytest.raises(Exception, match="must be a JSON object"):
        total(bad)
    assert running.stop() == 0
    by_id = {body["task_id"]: body for body in receiver.bodies}
    assert by_id[good.id]["result"]["sum"] == 3
    assert by_id[bad.id]["code"] == "invalid_payload"
    assert sorted(receiver.stored) == ["FAILURE", "SUCCESS"]
    for headers in receiver.headers:
        assert headers["authorization"].startswith("Basic ")
        Webhook(SECRET).verify(headers["raw"], headers)
    assert SECRET not in running.log()


@pytest.mark.parametrize("pool", POOLS)
def test_hooks_that_fail_change_no_result(
    pool: str, redis_scene: RedisScene, worker: StartWorker, moto: Moto
) -> None:
    """Neither the stream exists nor may the payload's URL be called."""
    env = moto.env | {
        "FORWARDER_HOOKS": "logging,callback",
        "FORWARDER_FIREHOSE_STREAM": "no-such-stream",
        "FORWARDER_LOG_LEVEL": "DEBUG",
    }
    running = worker(pool=pool, env=redis_scene.env | env)
    running.wait_ready()
    payload = {
        "args": {"numbers": [5], "note": "payload-text"},
        "callback_url": "http://169.254.169.254/steal",
    }
    result = redis_scene.sender.send(payload)
    assert total(result) == 5
    running.wait_for_log("hook=logging")
    running.wait_for_log("hook=callback")
    assert result.state == "SUCCESS"
    assert running.stop() == 0
    assert "payload-text" not in running.log(), "not at the level DEBUG either"


@pytest.mark.parametrize("pool", POOLS)
def test_started_is_stored_where_it_is_asked_for(
    pool: str, redis_scene: RedisScene, model_server: ModelServer
) -> None:
    redis_scene.ready(pool, TRACK_STARTED="true")
    result = redis_scene.send(numbers=[1], behaviour=HELD)
    model_server.wait_in_flight(1)
    assert result.state == "STARTED"
    model_server.control(release=True)
    assert total(result) == 1


@pytest.mark.parametrize("pool", POOLS)
def test_an_sqs_worker_whose_slots_are_full_does_not_spin(
    pool: str,
    redis_scene: RedisScene,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
    valkey: Valkey,
    moto: Moto,
    model_server: ModelServer,
) -> None:
    url = aws_resources.create_queue(moto.env, queue_name)
    env = redis_scene.env | moto.env
    env |= {"FORWARDER_BROKER_URL": "sqs://", "FORWARDER_SQS_QUEUE_URL": url, "FORWARDER_CONCURRENCY": "1"}
    running = worker(pool=pool, env=env)
    running.wait_ready()
    conf = sqs_conf(moto.env, queue=queue_name, url=url)
    sender = producer(broker_url=sqs_broker_url(moto.env), backend=valkey.url, conf=conf)
    results = [sender.send({"args": {"numbers": [n], "behaviour": HELD}}) for n in range(2)]
    model_server.wait_in_flight(1)
    time.sleep(1)  # whatever follows the start of the task is over
    times = psutil.Process(running.pid).cpu_times()
    time.sleep(3)
    after = psutil.Process(running.pid).cpu_times()
    used_s = after.user + after.system - times.user - times.system
    assert used_s < 1.0, "with kombu's polling_interval at 0 it is the whole 3 s"
    model_server.control(release=True)
    assert sorted(total(result) for result in results) == [0, 1]
