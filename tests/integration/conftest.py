"""Real services, the worker as a subprocess, and a stock Celery producer.

A service is started when the first test asks for it and stopped at the end.
What this machine does not have is skipped with its reason; where ``CI`` is set
it is a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import redis

from forwarder.testing.aws import ExistingCloud, LocalStack, Moto
from forwarder.testing.producer import Producer
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, NotInstalled, Service, Valkey
from forwarder.testing.worker import Worker
from tests.integration.scenes import RedisScene, idle, served, wait_until

StartWorker = Callable[..., Worker]
MakeProducer = Callable[..., Producer]
S = TypeVar("S", bound=Service)
#: Coverage puts this into the environment where it measures (its ``patch = subprocess``).
COVERAGE = "COVERAGE_PROCESS_CONFIG"
#: What lets coverage measure a worker as pyproject.toml says, greenlets too: it runs in another folder.
MEASURED = {
    "COVERAGE_PROCESS_START": str(CHECKOUT / "pyproject.toml"),
    "COVERAGE_FILE": str(CHECKOUT / ".coverage"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests share what takes the processor 5 s and more to start (``--dist=loadgroup``).

    Three for RabbitMQ, whose tests would take one process longer than all the others theirs.
    """
    rabbitmqs = itertools.cycle(f"rabbitmq-{number}" for number in range(3))
    for item in items:
        params: Any = getattr(getattr(item, "callspec", None), "params", {})
        asked_for = {*getattr(item, "fixturenames", ()), *map(str, params.values())}
        if "localstack" in asked_for:
            item.add_marker(pytest.mark.xdist_group("localstack"))
        elif asked_for & {"rabbitmq", "amqp"}:
            item.add_marker(pytest.mark.xdist_group(next(rabbitmqs)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail where xdist would distribute as if there were no groups (pytest-xdist#1386)."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and grouped and "@" not in grouped[0].nodeid:
        raise pytest.UsageError("pytest-xdist groups no tests with this pytest")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add the workers' logs to the report of a failed test."""
    report = yield
    if report.when == "call" and report.failed:
        for worker in getattr(item, "workers", ()):
            report.sections.append((f"log of {worker!r}", worker.log()[-20_000:]))
    return report


def missing(reason: str) -> NoReturn:
    """Skip the test here; fail it where CI is set, because there everything must be at hand."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _running(service: S) -> Iterator[S]:
    with ExitStack() as stack:
        try:
            stack.enter_context(service)
        except NotInstalled as error:
            missing(str(error))
        yield service


@pytest.fixture(name="missing")
def missing_fixture() -> Callable[[str], NoReturn]:
    """Return the function that says what this machine lacks."""
    return missing


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    yield from _running(Valkey())


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    yield from _running(RabbitMQ())


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    yield from _running(Moto())


@pytest.fixture(scope="session")
def localstack() -> Iterator[LocalStack | ExistingCloud]:
    """LocalStack, or the stack that the user's AWS_ENDPOINT_URL names."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield ExistingCloud(environ=os.environ)
        return
    default = CHECKOUT / ".venv-localstack" / "bin" / "python"
    python = Path(os.environ.get("FORWARDER_TEST_LOCALSTACK_PYTHON", default))
    yield from _running(LocalStack(python=python))


@pytest.fixture(scope="session")
def model_servers() -> Iterator[ModelServer]:
    yield from _running(ModelServer())


@pytest.fixture
def model_server(model_servers: ModelServer) -> ModelServer:
    """The sample model server: ready, well-behaved, with empty stats and nothing in flight."""
    model_servers.control(release=True)
    wait_until(lambda: idle(model_servers), "an earlier test's request has ended")
    model_servers.control(ready=True, behaviour={}, reset=True)
    return model_servers


@pytest.fixture
def queue_name() -> str:
    """A queue that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def nobody() -> Iterator[str]:
    """Host and port where nobody listens: the port is bound, so that nobody takes it while the test runs."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


@pytest.fixture
def worker(
    request: pytest.FixtureRequest, queue_name: str, model_server: ModelServer
) -> Iterator[StartWorker]:
    """Start a worker on ``queue_name``: ``worker(pool=…, env=…, args=…, ddtrace=…)``.

    Returns at once: ``wait_ready()`` blocks until it consumes. All are stopped after the test.
    Only a test that is marked ``measured`` starts workers that count for coverage: being measured
    doubles the processor's time that a worker takes from its start to its end.
    """
    started: list[Worker] = []
    request.node.workers = started
    is_measured = request.node.get_closest_marker("measured") and COVERAGE in os.environ
    with ExitStack() as stack:

        def start(
            *,
            pool: str = "prefork",
            env: Mapping[str, str] | None = None,
            args: Sequence[str] = (),
            ddtrace: bool = False,
            module: str = "forwarder",
        ) -> Worker:
            settings = {"FORWARDER_QUEUES": queue_name, "FORWARDER_CONCURRENCY": "2"}
            settings |= (MEASURED if is_measured else {}) | dict(env or {})
            started.append(Worker(pool=pool, env=settings, args=args, ddtrace=ddtrace, module=module))
            return stack.enter_context(started[-1])

        yield start
        model_server.control(release=True)  # no worker need wait for its drain


@pytest.fixture
def producer(queue_name: str) -> Iterator[MakeProducer]:
    """Make a stock producer for ``queue_name``: ``producer(broker_url=…, backend=…, conf=…)``."""
    with ExitStack() as stack:

        def make(*, broker_url: str, backend: str, conf: Mapping[str, Any] | None = None) -> Producer:
            made = Producer(broker_url=broker_url, backend=backend, queue=queue_name, conf=conf)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def redis_scene(
    worker: StartWorker, producer: MakeProducer, valkey: Valkey, model_server: ModelServer
) -> Iterator[RedisScene]:
    """A queue on Redis with its sender; no worker yet."""
    env = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": valkey.url, **model_server.env}
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    with redis.Redis.from_url(valkey.url) as broker:
        yield RedisScene(env, broker, sender, worker)


class Receiver:
    """Takes callbacks; while ``hold`` is set it answers none. ``env`` are a worker's settings for it."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append(json.loads(raw))
                if receiver.hold.is_set():
                    receiver.released.wait(60.0)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a worker that was killed
        self.env = {
            "FORWARDER_HOOKS": "callback",
            "FORWARDER_CALLBACK_URL": f"http://127.0.0.1:{self.server.server_port}/done",
            "FORWARDER_CALLBACK_ALLOW": "127.0.0.0/8",
        }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with served(made.server):
        try:
            yield made
        finally:
            made.released.set()
