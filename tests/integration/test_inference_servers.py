"""Real inference servers beside a real worker, with the settings that examples/ gives for each."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from forwarder.testing.processes import LOOPBACK, Command, clean_env
from forwarder.testing.producer import Producer
from forwarder.testing.services import CHECKOUT, NotInstalled, Service, Valkey, http_status
from tests.integration.scenes import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

#: The port in the examples' settings.
EXAMPLE_PORT = ":8000/"


class Example(Service):
    """The server of one folder of ``examples/``, in an environment of its own where it has requirements."""

    start_timeout_s = PATIENCE_S
    stop_timeout_s = 20.0

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.folder = CHECKOUT / "examples" / name

    def command(self, folder: Path) -> Command:
        python = Path(sys.executable)
        if (self.folder / "requirements.txt").exists():
            python = CHECKOUT / f".venv-{self.name}" / "bin" / "python"
            if not python.exists():
                raise NotInstalled(f"no {self.name} here: ./scripts/test integration installs it")
        argv = [str(python), str(self.folder / "server.py"), str(self.port)]
        return Command(argv=argv, env=clean_env(folder))

    def answers(self) -> bool:
        return http_status(self.port, urlsplit(self.env["FORWARDER_HEALTH_URL"]).path) == http.client.OK

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        lines = (self.folder / "forwarder.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        return {name: value.replace(EXAMPLE_PORT, f":{self.port}/") for name, value in settings.items()}


class Scene:
    """The example's server, a worker with its settings, and a sender."""

    def __init__(self, server: Example, sender: Producer) -> None:
        self.server = server
        self._sender = sender

    def send(self, **body: Any) -> AsyncResult[Any]:
        return self._sender.send({"args": body})

    def answer(self, result: AsyncResult[Any]) -> tuple[int, Any]:
        """Wait for a task's end; return the server's status and body."""
        stored = result.get(timeout=PATIENCE_S)
        return stored["status_code"], stored["result"]

    def running(self) -> list[str]:
        """Return the ids of the tasks that a slot has."""
        workers = self._sender.app.control.inspect(limit=1).active() or {}
        return [task["id"] for tasks in workers.values() for task in tasks]

    def revoke(self, result: AsyncResult[Any]) -> None:
        """Cancel a task that runs, and wait until its sender is told."""
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE_S)


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    worker: StartWorker,
    producer: MakeProducer,
    valkey: Valkey,
    missing: Callable[[str], NoReturn],
) -> Iterator[Scene]:
    server = Example(request.param)
    try:
        server.start()
    except NotInstalled as error:
        missing(str(error))
    with server:
        broker = {"FORWARDER_BROKER_URL": valkey.url, "FORWARDER_RESULT_BACKEND": valkey.url}
        settings = server.env
        worker(pool=settings.pop("CELERY_WORKER_POOL"), env=settings | broker).wait_ready()
        yield Scene(server, producer(broker_url=valkey.url, backend=valkey.url))


def on(server: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [server], indirect=True)


@on("litserve")
def test_litserve_answers_batches_and_a_broken_request_is_a_result_with_its_status(scene: Scene) -> None:
    results = [scene.send(numbers=[number, 1], sleep_s=0.1) for number in range(12)]
    assert [scene.answer(result) for result in results] == [
        (200, {"sum": number + 1.0}) for number in range(12)
    ]
    status, body = scene.answer(scene.send(numbers="none"))
    assert (status, body) == (500, {"detail": "Internal server error"})


@on("litserve")
def test_litserve_does_not_notice_a_cancel_and_serves_the_next_one_after_it(scene: Scene) -> None:
    cancelled = scene.send(numbers=[1], sleep_s=2.0)
    wait_until(lambda: cancelled.id in scene.running())
    scene.revoke(cancelled)
    assert scene.answer(scene.send(numbers=[2])) == (200, {"sum": 2.0})


@on("triton")
def test_triton_s_full_queue_is_busy_and_the_task_is_tried_again_until_there_is_room(scene: Scene) -> None:
    """Somebody else's requests run (four) and wait (four); one more is refused with 503."""
    slow, quick = tensors([0.0], sleep_s=4.0), tensors([0.0], sleep_s=0.0)
    full = threading.Event()

    def occupy() -> None:
        """Ask again and again: some are refused themselves, and others end before all have begun."""
        while not full.wait(0.1):
            post(scene.server, slow)

    with ThreadPoolExecutor(max_workers=12) as others:
        for _ in range(12):
            others.submit(occupy)
        try:
            wait_until(lambda: post(scene.server, quick) == http.client.SERVICE_UNAVAILABLE)
        finally:
            full.set()
        status, body = scene.answer(scene.send(**tensors([7.0], sleep_s=0.0)))
    assert (status, body["outputs"][0]["data"]) == (200, [7.0])


@on("triton")
def test_triton_s_refusals_are_results_with_their_status(scene: Scene) -> None:
    status, body = scene.answer(scene.send(inputs=[]))
    assert status == 400
    assert "expected 2 inputs but got 0" in body["error"]


@on("triton")
def test_triton_does_not_notice_a_cancel_and_serves_the_next_one_after_it(scene: Scene) -> None:
    cancelled = scene.send(**tensors([1.0], sleep_s=2.0))
    wait_until(lambda: cancelled.id in scene.running())
    scene.revoke(cancelled)
    status, body = scene.answer(scene.send(**tensors([2.0], sleep_s=0.0)))
    assert (status, body["outputs"][0]["data"]) == (200, [2.0])
    assert 'reason="CANCELED",version="1"} 0' in metrics_of_triton(scene.server)


@on("openai")
def test_chat_completions_come_back_whole_and_too_many_at_a_time_are_tried_again(scene: Scene) -> None:
    """Two at a time are the server's, and somebody else has one of them."""
    other = http.client.HTTPConnection(LOOPBACK, scene.server.port, timeout=PATIENCE_S)
    other.request("POST", "/v1/chat/completions", json.dumps({**chat("mine"), "sleep_s": 1.5}))
    results = [scene.send(**chat("one two three"), sleep_s=0.3) for _ in range(4)]
    for result in results:
        status, body = scene.answer(result)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "3 words")
    other.close()
    assert seen(scene.server)["busy"] > 0


@on("openai")
def test_a_cancelled_completion_ends_where_the_server_looks_at_its_client(scene: Scene) -> None:
    cancelled = scene.send(**chat("long"), sleep_s=60.0)
    wait_until(lambda: cancelled.id in scene.running())
    scene.revoke(cancelled)
    wait_until(lambda: seen(scene.server)["cancelled"] == 1)


@on("openai")
def test_an_error_of_the_server_is_a_result_and_a_stream_is_a_failure(scene: Scene) -> None:
    status, body = scene.answer(scene.send(messages="none"))
    assert (status, body["error"]["code"]) == (400, 400)
    with pytest.raises(Exception, match="a body that is not JSON"):
        scene.answer(scene.send(**chat("a stream"), stream=True))


def chat(text: str) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": "words", "messages": [{"role": "user", "content": text}]}


def tensors(values: list[float], *, sleep_s: float) -> dict[str, Any]:
    """Return a request in Triton's JSON (KServe v2): one row."""
    return {
        "inputs": [
            {"name": "values", "datatype": "FP32", "shape": [1, len(values)], "data": values},
            {"name": "sleep_s", "datatype": "FP32", "shape": [1, 1], "data": [sleep_s]},
        ]
    }


def post(server: Example, body: dict[str, Any]) -> int:
    """Ask the server beside the worker; return the status."""
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", urlsplit(server.env["FORWARDER_PREDICT_URL"]).path, json.dumps(body))
        return connection.getresponse().status
    finally:
        connection.close()


def seen(server: Example) -> dict[str, int]:
    return dict(json.loads(get(server.port, "/seen")))


def metrics_of_triton(server: Example) -> str:
    return get(server.port + 2, "/metrics")


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
