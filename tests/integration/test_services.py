"""The services of the other tests: each is the one we started, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from forwarder.testing import services
from forwarder.testing.aws import ExistingCloud, LocalStack, Moto
from forwarder.testing.aws_resources import (
    client,
    create_bucket,
    create_delivery_stream,
    create_role,
    delivered_records,
)
from forwarder.testing.processes import LOOPBACK, StartFailed, family, free_port, owns_port, wait_gone
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import CHECKOUT, ModelServer, NotInstalled, Service, Valkey
from tests.integration.scenes import HELD, PATIENCE_S, idle, wait_until


def _listeners(pid: int) -> set[tuple[str, int]]:
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in family(pid)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def _is_refused(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex((LOOPBACK, port)) != 0


@pytest.mark.parametrize("make", [Valkey, ModelServer, Moto, RabbitMQ])
def test_a_service_is_ours_listens_on_loopback_only_and_leaves_nothing(
    make: Callable[[], Service], missing: Callable[[str], None]
) -> None:
    service = make()
    with ExitStack() as stack:
        try:
            stack.enter_context(service)
        except NotInstalled as error:
            missing(str(error))
        processes = family(service.pid)
        folder = service.process.folder
        assert owns_port(service.pid, service.port)
        assert {address for address, _ in _listeners(service.pid)} == {LOOPBACK}
        ports = {port for _, port in _listeners(service.pid)}
        if isinstance(service, RabbitMQ):
            # epmd adds ::1 by itself; both are loopback
            assert {address for address, _ in _listeners(service.epmd.pid)} <= {LOOPBACK, "::1"}
            processes += family(service.epmd.pid)

    assert wait_gone(processes, timeout_s=0.0)
    assert all(_is_refused(port) for port in ports)
    assert not folder.exists()


def test_localstack_is_ours_and_listens_on_loopback_only(localstack: LocalStack | ExistingCloud) -> None:
    if isinstance(localstack, ExistingCloud):
        pytest.skip("AWS_ENDPOINT_URL names a stack that is not ours")
    assert owns_port(localstack.pid, localstack.port)
    assert {address for address, _ in _listeners(localstack.pid)} == {LOOPBACK}


def test_a_port_that_somebody_else_took_is_given_up_for_another(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([valkey.port, free_port()])
    monkeypatch.setattr(services, "free_port", lambda: next(ports))
    with Valkey() as second:
        assert second.port != valkey.port
        assert owns_port(second.pid, second.port)
        assert not owns_port(second.pid, valkey.port)


def test_a_server_that_never_gets_ready_is_an_error_that_shows_its_log_and_leaves_nothing() -> None:
    class Broken(ModelServer):
        start_timeout_s = 0.2

        def answers(self) -> bool:
            self.folder = self.process.folder
            return False

    broken = Broken()
    with pytest.raises(StartFailed, match="model-server was not ready"):
        broken.start()
    assert not broken.folder.exists()


def test_services_die_with_a_parent_that_is_killed() -> None:
    program = (
        "import time\n"
        "from forwarder.testing.services import Valkey\n"
        "with Valkey() as valkey:\n"
        "    print(valkey.pid, valkey.process.folder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=CHECKOUT)
    assert parent.stdout is not None
    with parent.stdout as output:
        pid, folder = output.readline().decode().split()
    processes = family(int(pid))
    assert processes
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_gone(processes, timeout_s=PATIENCE_S)
    wait_until(lambda: not Path(folder).exists())


@pytest.fixture(params=["moto", "localstack"])
def cloud(request: pytest.FixtureRequest) -> Moto | LocalStack | ExistingCloud:
    """Each stand-in for AWS in turn."""
    found: Moto | LocalStack | ExistingCloud = request.getfixturevalue(request.param)
    return found


def test_firehose_records_are_delivered_through_an_assumed_role(
    cloud: Moto | LocalStack | ExistingCloud, queue_name: str
) -> None:
    create_bucket(cloud.env, queue_name)
    role_arn = create_role(cloud.env, queue_name)
    create_delivery_stream(cloud.env, queue_name, bucket=queue_name, role_arn=role_arn)
    token = client(cloud.env, "sts").assume_role(RoleArn=role_arn, RoleSessionName="test")["Credentials"]
    assumed = cloud.env | {"AWS_ACCESS_KEY_ID": token["AccessKeyId"]}
    records = [{"Data": json.dumps({"TASK_ID": str(n)}).encode() + b"\n"} for n in range(3)]
    client(assumed, "firehose").put_record_batch(DeliveryStreamName=queue_name, Records=records)
    client(assumed, "firehose").put_record(DeliveryStreamName=queue_name, Record=records[0])
    wait_until(lambda: len(list(delivered_records(cloud.env, queue_name))) == 4)
    delivered = sorted(record["TASK_ID"] for record in delivered_records(cloud.env, queue_name))
    assert delivered == ["0", "0", "1", "2"]


@pytest.fixture
def connection(model_server: ModelServer) -> Iterator[HTTPConnection]:
    """A kept-alive connection to the sample model server."""
    made = HTTPConnection(LOOPBACK, model_server.port, timeout=PATIENCE_S)
    yield made
    made.close()


def _predict(connection: HTTPConnection, **body: object) -> tuple[int, bytes]:
    connection.request("POST", "/predict", body=json.dumps(body))
    response = connection.getresponse()
    return response.status, response.read()


def test_the_model_server_computes_its_three_sums(connection: HTTPConnection) -> None:
    status, body = _predict(connection, id="a", numbers=[3, -1, 4])
    assert status == 200
    assert json.loads(body) == {"id": "a", "sum": 6, "weighted_sum": 13, "sum_of_squares": 26}


@pytest.mark.parametrize("numbers", ["text", ["text"], [1.5], {}])
def test_the_model_server_refuses_what_are_not_integers(connection: HTTPConnection, numbers: object) -> None:
    assert _predict(connection, numbers=numbers)[0] == 400


def test_the_model_server_is_busy_so_often_and_then_fine(
    connection: HTTPConnection, model_server: ModelServer
) -> None:
    answers = [_predict(connection, id="b", behaviour={"busy": 2})[0] for _ in range(3)]
    assert answers == [503, 503, 200]
    assert model_server.stats()["by_id"] == {"b": 3}


def test_the_model_server_keeps_connections_alive(
    connection: HTTPConnection, model_server: ModelServer
) -> None:
    for _ in range(5):
        _predict(connection)
    stats = model_server.stats()
    assert stats["requests"] == 5
    assert stats["connections"] == 2  # ours and the one that asks for the stats


@pytest.mark.parametrize(
    ("behaviour", "status", "body"),
    [
        ({"answer": "text"}, 200, b"this is not JSON"),
        ({"answer": "empty"}, 200, b""),
        ({"answer": "html", "status": 500}, 500, b"<html><body><h1>Internal Server Error</h1></body></html>"),
        ({"answer": "nan"}, 200, b'{"sum": NaN}'),
        ({"huge_bytes": 5}, 200, b'"xxxxx"'),
        ({"huge_bytes": 5, "trickle_s": 0.001}, 200, b'"xxxxx"'),
        ({"huge_bytes": 5, "trickle_head_s": 0.001}, 200, b'"xxxxx"'),
    ],
)
def test_the_model_server_misbehaves_as_told(
    connection: HTTPConnection, behaviour: dict[str, object], status: int, body: bytes
) -> None:
    assert _predict(connection, behaviour=behaviour) == (status, body)


def test_the_model_server_cuts_an_answer_short(model_server: ModelServer) -> None:
    body = json.dumps({"behaviour": {"cut": True, "huge_bytes": 1000}})
    with socket.create_connection((LOOPBACK, model_server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(f"POST /predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 1002" in head
    assert len(content) == 501


@pytest.mark.parametrize("close", ["announced", "silent"])
def test_the_model_server_closes_after_an_answer(model_server: ModelServer, close: str) -> None:
    body = json.dumps({"behaviour": {"close": close}})
    with socket.create_connection((LOOPBACK, model_server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(f"POST /predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert (b"Connection: close" in answer) == (close == "announced")


def test_the_model_server_holds_an_answer_until_it_is_released(model_server: ModelServer) -> None:
    statuses: list[int] = []

    def ask() -> None:
        asking = HTTPConnection(LOOPBACK, model_server.port, timeout=PATIENCE_S)
        statuses.append(_predict(asking, behaviour=HELD)[0])
        asking.close()

    thread = threading.Thread(target=ask)
    thread.start()
    model_server.wait_in_flight(1)
    assert statuses == []
    model_server.control(release=True)
    thread.join()
    assert statuses == [200]


def test_the_model_server_holds_nothing_for_a_client_that_has_gone(
    connection: HTTPConnection, model_server: ModelServer
) -> None:
    connection.request("POST", "/predict", body=json.dumps({"behaviour": HELD}))
    model_server.wait_in_flight(1)
    connection.close()
    wait_until(lambda: idle(model_server))


def test_the_model_server_is_not_ready_when_told_so(model_server: ModelServer) -> None:
    model_server.control(ready=False)
    assert not model_server.answers()
    model_server.control(ready=True)
    assert model_server.answers()


def test_the_model_server_holds_512_requests_at_once(model_server: ModelServer) -> None:
    statuses: list[int] = []

    def ask() -> None:
        asking = HTTPConnection(LOOPBACK, model_server.port, timeout=PATIENCE_S)
        statuses.append(_predict(asking, behaviour=HELD)[0])
        asking.close()

    threads = [threading.Thread(target=ask) for _ in range(512)]
    for thread in threads:
        thread.start()
    model_server.wait_in_flight(512)
    model_server.control(release=True)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 512
