"""Traces: one from the producer through the queue to the inference server, seen by Datadog's test agent."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from forwarder.testing.services import Valkey
from tests.integration.datadog_agent import Agent, TracedScene, scene_on, traced
from tests.integration.scenes import PATIENCE_S, POOLS, RedisScene, served, total

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, Receiver, StartWorker

SECRET = "payload-that-nobody-may-see"
#: Both pools on one broker, and one on each of the others.
EVERYWHERE = [("redis", "prefork"), ("redis", "gevent"), ("amqp", "prefork"), ("sqs", "gevent")]


@pytest.fixture(scope="module")
def agents() -> Iterator[Agent]:
    with Agent() as agent:
        yield agent


@pytest.fixture
def silent() -> Iterator[str]:
    """Host and port where somebody listens, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def agent(agents: Agent) -> Agent:
    agents.clear()
    return agents


class Listener:
    """An inference server that keeps the headers of each request, and answers with ``status``."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.status = 200
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                listener.headers.append({name.lower(): value for name, value in self.headers.items()})
                self._answer(listener.status)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "13")
                self.end_headers()
                self.wfile.write(b'{"sum":  123}')

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        base = f"http://127.0.0.1:{self.server.server_port}"
        self.env = {"FORWARDER_PREDICT_URL": f"{base}/predict", "FORWARDER_HEALTH_URL": f"{base}/readyz"}


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    with served(made.server):
        yield made


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    broker: str,
    queue_name: str,
    valkey: Valkey,
    producer: MakeProducer,
    worker: StartWorker,
) -> TracedScene:
    return scene_on(broker, request, queue=queue_name, valkey=valkey, producer=producer, worker=worker)


@pytest.mark.parametrize(("broker", "pool"), EVERYWHERE)
def test_one_trace_leads_from_the_producer_through_the_worker_to_the_inference_server(
    broker: str, pool: str, scene: TracedScene, agent: Agent, listener: Listener, receiver: Receiver
) -> None:
    traced(scene, pool, agent.url, listener.env, receiver.env)
    text = SECRET * 100
    root = scene.send_traced(agent, {"args": {"text": text}})
    task_id = f"{scene.sender.queue}-traced"
    assert scene.sender.result(task_id).get(timeout=PATIENCE_S)["status_code"] == 200

    [task] = agent.spans_named("forwarder.task")
    children = [span for span in agent.spans() if span["parent_id"] == task["span_id"]]
    by_name = {(span["name"], span["resource"]): span for span in children}
    assert task["parent_id"] == root["span_id"]
    assert {span["trace_id"] for span in [task, *children]} == {root["trace_id"] & (2**64 - 1)}
    looked = [] if broker == "sqs" else [("forwarder.store", "look")]  # S3 tells with the write
    assert sorted(by_name) == [
        ("forwarder.hook", "callback"),
        ("forwarder.inference", "POST /predict"),
        *looked,
        ("forwarder.store", "write SUCCESS"),
    ]
    assert (task["resource"], task["type"]) == (scene.sender.queue, "worker")
    assert task["meta"]["forwarder.task_id"] == task_id
    assert task["meta"]["forwarder.outcome"] == "success"
    assert task["meta"]["http.status_code"] == "200"
    assert task["metrics"]["forwarder.deliveries"] == 1
    assert task["metrics"]["http.request.content_length"] == len(json.dumps({"text": text})) - 1
    assert task["metrics"]["http.response.content_length"] == 13
    # The server's own spans hang below the call.
    asked = by_name["forwarder.inference", "POST /predict"]
    [headers] = listener.headers
    assert headers["x-datadog-parent-id"] == str(asked["span_id"])
    assert headers["traceparent"].split("-")[2] == f"{asked['span_id']:016x}"
    # No other task span, none of what goes on beside the tasks, and nothing of the payload in any.
    spans = agent.spans()
    assert {span["trace_id"] for span in spans} == {task["trace_id"]}
    assert "celery.run" not in {span["name"] for span in spans}
    ours = {task["span_id"], *(span["span_id"] for span in children)}
    assert "redis.command" not in {span["name"] for span in spans if span["parent_id"] in ours}
    assert SECRET not in json.dumps(spans)
    # Nor as base64, in which a message's body is on Redis and on SQS.
    assert max(len(tag) for span in spans for tag in span["meta"].values()) < len(text)


@pytest.mark.parametrize("pool", POOLS)
def test_a_w3c_producers_trace_goes_on_and_a_failure_marks_its_spans(
    pool: str, redis_scene: RedisScene, agent: Agent, listener: Listener
) -> None:
    worker = traced(redis_scene, pool, agent.url, listener.env, {"FORWARDER_LOG_FORMAT": "json"})
    trace_id, span_id = 0xABC << 64 | 0xDEF, 0xCD
    headers = {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-01"}
    result = redis_scene.sender.send({"args": 1, "cloudpickle": SECRET}, headers=headers)
    result.get(timeout=PATIENCE_S, propagate=False)
    listener.status = 500
    other = redis_scene.sender.send({"args": 1}, headers=headers)
    other.get(timeout=PATIENCE_S)

    tasks = {span["meta"]["forwarder.task_id"]: span for span in agent.spans_named("forwarder.task", 2)}
    [asked] = agent.spans_named("forwarder.inference")
    refused = tasks[result.id]
    assert (refused["trace_id"], refused["parent_id"]) == (0xDEF, span_id)
    assert (refused["error"], refused["meta"]["error.type"]) == (1, "PickleRefused")
    assert refused["meta"]["error.message"] == "pickle_refused"
    assert "error.stack" not in refused["meta"]
    assert (asked["error"], tasks[other.id]["error"]) == (1, 0)
    assert asked["meta"]["http.status_code"] == "500"
    assert SECRET not in json.dumps(agent.spans())
    # The line in the log and the trace find each other.
    log = worker.log()
    ours = log[log.index('{"ts"') :]  # ddtrace-run may say something before the worker begins
    lines = [json.loads(line) for line in ours.splitlines()]  # each is JSON, ddtrace's and warnings too
    [told] = [line for line in lines if line["event"] == "task_done" and line["task_id"] == result.id]
    assert told["dd.trace_id"] == f"{trace_id:032x}"
    assert told["dd.span_id"] == str(refused["span_id"])


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_stops_sends_its_last_spans_first(
    pool: str, redis_scene: RedisScene, agent: Agent
) -> None:
    worker = traced(redis_scene, pool, agent.url, {"DD_TRACE_WRITER_INTERVAL_SECONDS": "600"})
    results = [redis_scene.send(request_id=f"t{number}", numbers=[number]) for number in range(10)]
    assert [total(result) for result in results] == list(range(10))
    assert worker.stop() == 0
    sent = [span["meta"]["forwarder.task_id"] for span in agent.spans_named("forwarder.task", 10)]
    assert sorted(sent) == sorted(result.id for result in results)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("agent_is", ["gone", "silent"])
def test_an_agent_that_is_away_costs_nothing_but_its_spans(
    pool: str, agent_is: str, redis_scene: RedisScene, nobody: str, silent: str
) -> None:
    url = f"http://{nobody if agent_is == 'gone' else silent}"
    worker = traced(redis_scene, pool, url, {"FORWARDER_DRAIN_TIMEOUT_S": "30"})
    results = [redis_scene.send(request_id=f"t{number}", numbers=[number]) for number in range(20)]
    assert [total(result) for result in results] == list(range(20))
    assert worker.stop() == 0
    assert redis_scene.held() == 0
    # It ends soon after its last line: what the tracer still tries to send is not waited for.
    last_line_s, end_s = worker.log_path.stat().st_mtime, time.time()
    assert end_s - last_line_s < 10.0


@pytest.mark.parametrize(("broker", "pool"), EVERYWHERE)
def test_without_ddtrace_w3c_context_is_passed_on_as_it_is_and_nothing_of_datadogs_is_loaded(
    pool: str, scene: TracedScene, listener: Listener
) -> None:
    worker = scene.worker(pool=pool, env=scene.env | listener.env)
    worker.wait_ready()
    context = {
        "traceparent": f"00-{0xAB:032x}-{0xCD:016x}-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=7",
    }
    scene.sender.send({"args": 1}, headers=context).get(timeout=PATIENCE_S)
    scene.sender.send({"args": 1}, headers={"headers": context}).get(timeout=PATIENCE_S)
    for headers in listener.headers:
        assert {name: headers[name] for name in context} == context
    assert len(listener.headers) == 2
    for pid in (worker.pid, *worker.children()):
        mapped = {mapping.path for mapping in psutil.Process(pid).memory_maps()}
        assert not [path for path in mapped if "ddtrace" in path]
