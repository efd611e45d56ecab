"""``tune`` against servers whose limits are known, and payloads that lie in a real queue."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import clean_env
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey
from forwarder.tuning import children
from forwarder.tuning.child import NotMeasured
from forwarder.tuning.samples import Sample
from tests.integration.conftest import MakeProducer
from tests.integration.scenes import PATIENCE_S, served

Tune = Callable[..., "subprocess.CompletedProcess[str]"]
#: So long that the machine's own noise is small beside it.
INFERENCE_S = 0.1
RESPONSE = json.dumps({"text": "x" * 50_000}).encode()


@pytest.fixture
def tune(tmp_path: Path, queue_name: str) -> Tune:
    """Run ``forwarder tune`` to its end in an environment of its own."""

    def run(*args: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        own = clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT), "FORWARDER_QUEUES": queue_name}
        return subprocess.run(
            [sys.executable, "-m", "forwarder", "tune", *args],
            env=own | dict(env),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )

    return run


@pytest.fixture
def payloads(tmp_path: Path) -> str:
    """Return a file of ten payloads, 1 to 10 KB."""
    path = tmp_path / "payloads.jsonl"
    lines = [json.dumps({"args": {"text": "y" * 1000 * number}}) for number in range(1, 11)]
    path.write_text("\n".join(lines))
    return str(path)


@contextmanager
def serving(
    slots: int,
    *,
    refuses: bool = False,
    status: int = 200,
    inference_s: float = INFERENCE_S,
    response: bytes = RESPONSE,
) -> Iterator[dict[str, str]]:
    """Serve so many at a time; others wait, or are refused. Give the settings that name the server."""
    free = threading.Semaphore(slots)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
            pass

        def do_GET(self) -> None:
            self._answer(200, b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if not free.acquire(blocking=not refuses):
                self._answer(503, b"{}")
                return
            time.sleep(inference_s)
            free.release()
            self._answer(status, response)

        def _answer(self, code: int, body: bytes) -> None:
            head = f"HTTP/1.1 {code} Said\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_port}"
    with served(server):
        yield {"FORWARDER_PREDICT_URL": f"{url}/predict", "FORWARDER_HEALTH_URL": f"{url}/readyz"}


def written(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("refuses", [False, True], ids=["waits", "refuses"])
def test_the_knee_of_a_server_with_six_slots_is_found_and_written(
    tune: Tune, payloads: str, tmp_path: Path, *, refuses: bool
) -> None:
    path = tmp_path / "tuned.env"
    with serving(6, refuses=refuses) as env:
        ended = tune("--payload", payloads, "--write", str(path), "--max-concurrency", "16", env=env)
    assert ended.returncode == 0, ended.stderr
    advised = written(path)
    # On a busy machine fewer may seem to bring less than they do; the choice itself is a pure function.
    assert int(advised["FORWARDER_CONCURRENCY"]) in ({6, 8} if refuses else {6, 8, 16})
    assert advised["CELERY_WORKER_POOL"] == "gevent"
    assert advised["FORWARDER_RESPONSE_BYTES_MAX"] == str(1024 * 1024)
    assert "  --concurrency " in ended.stdout


CHILD_MIB = re.compile(r"a prefork process: ([0-9.]+) MiB for itself \(the larger of two, after \d+ tasks\)")


def test_the_memory_of_a_process_is_read_from_a_worker_at_work(tune: Tune, tmp_path: Path) -> None:
    def child_mib(size_bytes: int) -> float:
        payloads = tmp_path / f"{size_bytes}.jsonl"
        payloads.write_text(json.dumps({"args": {"text": "x" * size_bytes}}))
        with serving(4, inference_s=0.01) as env:
            ended = tune("--payload", str(payloads), "--max-requests", "100", env=env)
        assert ended.returncode == 0, ended.stderr
        found = CHILD_MIB.search(ended.stdout)
        assert found is not None, ended.stdout
        return float(found[1])

    small = child_mib(100)
    assert 8 < small < 24  # the bound that holds where nothing is measured
    assert child_mib(4_000_000) > small + 4  # the allocator keeps some of it


def test_a_process_without_a_figure_has_the_reason(tune: Tune, payloads: str) -> None:
    sample = Sample(json.dumps({"args": {"text": "hunter2"}}), message_bytes=900, url=None)
    with serving(1, inference_s=1.0) as env:
        with pytest.raises(NotMeasured, match="raise --max-seconds"):
            children.measure([sample], env=env, within_s=0.1, ddtrace=False)
        refused = {**env, "FORWARDER_TASK_TIMEOUT_S": "hunter2"}
        with pytest.raises(NotMeasured, match="did not start") as caught:
            children.measure([sample], env=refused, within_s=5.0, ddtrace=False)
    assert "hunter2" not in repr(caught.value)
    with serving(4) as env:
        ended = tune("--payload", payloads, "--max-requests", "40", env=env)
    assert ended.returncode == 0, ended.stderr
    assert "a prefork process: not measured: --max-requests leaves no 20 for it" in ended.stdout


def test_a_file_that_is_there_is_not_replaced_unless_forced(
    tune: Tune, payloads: str, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.env"
    path.write_text("mine")
    with serving(1) as env:
        refused = tune("--payload", payloads, "--write", str(path), env=env)
        assert refused.returncode == 2
        assert path.read_text() == "mine"
        forced = tune("--payload", payloads, "--write", str(path), "--force", "--max-requests", "20", env=env)
    assert forced.returncode == 0, forced.stderr
    assert "FORWARDER_CONCURRENCY" in written(path)


def test_payloads_are_looked_at_in_the_queue_and_stay_there(
    tune: Tune, producer: MakeProducer, valkey: Valkey, queue_name: str
) -> None:
    sender = producer(broker_url=valkey.database(0), backend=valkey.database(1))
    for number in range(3):
        sender.send({"args": {"text": "hunter2" * 1000}}, priority=3 * number)
    with redis.Redis.from_url(valkey.database(0)) as client, serving(2) as env:
        names = sorted(client.scan_iter(f"{queue_name}*"))
        before = [client.lrange(name, 0, -1) for name in names]
        ended = tune("--max-requests", "20", env={**env, "FORWARDER_BROKER_URL": valkey.database(0)})
        after = [client.lrange(name, 0, -1) for name in names]
    assert ended.returncode == 0, ended.stderr
    assert "the largest of 3;" in ended.stdout
    assert "hunter2" not in ended.stdout + ended.stderr
    assert len(before) == 3
    assert before == after


def test_other_brokers_show_nothing_without_a_delivery(tune: Tune) -> None:
    ended = tune(env={"FORWARDER_BROKER_URL": "amqp://127.0.0.1:1//"})
    assert ended.returncode == 2
    assert "--payload FILE" in ended.stderr


def test_an_empty_queue_asks_for_payloads(tune: Tune, valkey: Valkey) -> None:
    ended = tune(env={"FORWARDER_BROKER_URL": valkey.database(0)})
    assert ended.returncode == 2
    assert "no task waits in" in ended.stderr


def test_a_server_that_refuses_the_payloads_is_no_measure(tune: Tune, payloads: str) -> None:
    with serving(4, status=422) as env:
        ended = tune("--payload", payloads, env=env)
    assert ended.returncode == 1
    assert "refuses these payloads" in ended.stderr


def test_a_server_that_is_not_there_ends_with_three(tune: Tune, payloads: str, nobody: str) -> None:
    ended = tune("--payload", payloads, env={"FORWARDER_HEALTH_URL": f"http://{nobody}/"})
    assert ended.returncode == 3
    assert "inference server" in ended.stderr


def test_a_server_that_is_ready_elsewhere_but_can_not_be_asked_is_named_at_once(
    tune: Tune, payloads: str, model_server: ModelServer, nobody: str
) -> None:
    ended = tune("--payload", payloads, "--predict-url", f"http://{nobody}/p", env=model_server.env)
    assert ended.returncode == 3
    assert f"the inference server can't be reached at http://{nobody}/p" in ended.stderr
    assert ended.stdout == ""


def test_inputs_by_reference_are_downloaded_and_measured(
    tune: Tune, moto: Moto, model_server: ModelServer, queue_name: str, tmp_path: Path
) -> None:
    s3 = aws_resources.client(moto.env, "s3")
    aws_resources.create_bucket(moto.env, queue_name)
    body = json.dumps({"numbers": [7] * 400_000}).encode()  # 1.2 MB: by way of the disk
    s3.put_object(Bucket=queue_name, Key="input", Body=body)
    payloads = tmp_path / "payloads.jsonl"
    payloads.write_text(json.dumps({"url": f"s3://{queue_name}/input", "destination_path": "s3://absent/x"}))
    env = {**moto.env, **model_server.env, "FORWARDER_STAGE_FOLDER": str(tmp_path)}
    ended = tune("--payload", str(payloads), "--max-requests", "30", env=env)
    assert ended.returncode == 0, ended.stderr
    assert "--stage-bytes-max" in ended.stdout
    assert "download of an input" in ended.stdout
    left = [path for path in tmp_path.glob("forwarder-staging-*/*") if path.stat().st_size > 1000]
    assert left == []
