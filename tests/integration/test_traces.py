"""Traces: one from the producer through the queue to the inference server, seen by Datadog's test agent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from forwarder.testing.processes import Command, clean_env, free_port
from forwarder.testing.services import Service
from forwarder.testing.worker import Worker
from tests.integration.scenes import PATIENCE_S, POOLS, RedisScene, served, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Receiver

SECRET = "payload-that-nobody-may-see"
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
url, queue, payload = sys.argv[1:]
app = Celery(broker=url, backend=url)
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


def traced(redis_scene: RedisScene, pool: str, agent_url: str, *envs: Mapping[str, str]) -> Worker:
    """Start a worker through ``ddtrace-run`` that reports to the agent, and wait until it consumes."""
    env = dict(redis_scene.env) | QUIET | {"DD_TRACE_AGENT_URL": agent_url}
    for each in envs:
        env |= each
    worker = redis_scene.worker(pool=pool, env=env, ddtrace=True)
    worker.wait_ready()
    return worker


def send_traced(redis_scene: RedisScene, agent: Agent, payload: Mapping[str, Any]) -> dict[str, int]:
    """Send the task ``<queue>-traced`` from a traced producer; return the ids of its span."""
    sent = subprocess.run(
        [str(BIN / "ddtrace-run"), sys.executable, "-c", TRACED_PRODUCER,
         redis_scene.env["FORWARDER_BROKER_URL"], redis_scene.sender.queue, json.dumps(payload)],
        env=clean_env(Path("/tmp")) | QUIET
        | {"DD_TRACE_AGENT_URL": agent.url, "DD_CELERY_DISTRIBUTED_TRACING": "true"},
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return dict(json.loads(sent.stdout.splitlines()[-1]))


def spans_named(agent: Agent, name: str, number: int = 1) -> list[dict[str, Any]]:
    """Wait until so many spans of this name have arrived and return them."""

    def found() -> list[dict[str, Any]]:
        return [span for span in agent.spans() if span["name"] == name]

    wait_until(lambda: len(found()) >= number, f"{number} of {name}")
    return found()


@pytest.mark.parametrize("pool", POOLS)
def test_one_trace_leads_from_the_producer_through_the_worker_to_the_inference_server(
    pool: str, redis_scene: RedisScene, agent: Agent, listener: Listener, receiver: Receiver
) -> None:
    traced(redis_scene, pool, agent.url, listener.env, receiver.env)
    root = send_traced(redis_scene, agent, {"args": {"text": SECRET}})
    task_id = f"{redis_scene.sender.queue}-traced"
    assert redis_scene.sender.result(task_id).get(timeout=PATIENCE_S)["status_code"] == 200

    [task] = spans_named(agent, "forwarder.task")
    children = [span for span in agent.spans() if span["parent_id"] == task["span_id"]]
    by_name = {(span["name"], span["resource"]): span for span in children}
    assert task["parent_id"] == root["span_id"]
    assert {span["trace_id"] for span in [task, *children]} == {root["trace_id"] & (2**64 - 1)}
    assert sorted(by_name) == [
        ("forwarder.hook", "callback"),
        ("forwarder.inference", "POST /predict"),
        ("forwarder.store", "look"),
        ("forwarder.store", "write SUCCESS"),
    ]
    assert (task["resource"], task["type"]) == (redis_scene.sender.queue, "worker")
    assert task["meta"]["forwarder.task_id"] == task_id
    assert task["meta"]["forwarder.outcome"] == "success"
    assert task["meta"]["http.status_code"] == "200"
    assert task["metrics"]["forwarder.deliveries"] == 1
    assert task["metrics"]["http.request.content_length"] == len(json.dumps({"text": SECRET})) - 1
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

    tasks = {span["meta"]["forwarder.task_id"]: span for span in spans_named(agent, "forwarder.task", 2)}
    [asked] = spans_named(agent, "forwarder.inference")
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
    sent = [span["meta"]["forwarder.task_id"] for span in spans_named(agent, "forwarder.task", 10)]
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


@pytest.mark.parametrize("pool", POOLS)
def test_without_ddtrace_w3c_context_is_passed_on_as_it_is_and_nothing_of_datadogs_is_loaded(
    pool: str, redis_scene: RedisScene, listener: Listener
) -> None:
    worker = redis_scene.worker(pool=pool, env=redis_scene.env | listener.env)
    worker.wait_ready()
    context = {
        "traceparent": f"00-{0xAB:032x}-{0xCD:016x}-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=7",
    }
    redis_scene.sender.send({"args": 1}, headers=context).get(timeout=PATIENCE_S)
    redis_scene.sender.send({"args": 1}, headers={"headers": context}).get(timeout=PATIENCE_S)
    for headers in listener.headers:
        assert {name: headers[name] for name in context} == context
    assert len(listener.headers) == 2
    for pid in (worker.pid, *worker.children()):
        mapped = {mapping.path for mapping in psutil.Process(pid).memory_maps()}
        assert not [path for path in mapped if "ddtrace" in path]
