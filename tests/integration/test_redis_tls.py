"""Redis over TLS, as ``rediss://`` and as the ancestor's REDIS_AUTH_TOKEN make it."""

from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from forwarder.testing.certificates import write_self_signed
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import POOLS, total

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "redis.pem"
    return write_self_signed(path, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@pytest.fixture
def tls_port(valkey: Valkey, certificate: Path) -> Iterator[int]:
    """A port that speaks TLS and passes what it hears on to Valkey, which was built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return  # the test is over
            threading.Thread(target=pass_on, args=(plain,), daemon=True).start()

    def pass_on(accepted: socket.socket) -> None:
        try:
            with (
                context.wrap_socket(accepted, server_side=True) as near,
                socket.create_connection(("127.0.0.1", valkey.port)) as far,
            ):
                while True:
                    ready, _, _ = select.select([near, far], [], [])
                    for source, target in ((near, far), (far, near)):
                        if source in ready:
                            data = source.recv(65536)
                            if not data:
                                return
                            while source is near and near.pending():  # select doesn't see it
                                data += near.recv(near.pending())
                            target.sendall(data)
        except OSError:
            return  # a client that trusts nobody, or one that is gone

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize("pool", POOLS)
def test_tasks_and_results_travel_over_tls(
    pool: str,
    worker: StartWorker,
    producer: MakeProducer,
    tls_port: int,
    certificate: Path,
    valkey: Valkey,
    model_server: ModelServer,
) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"
    env = {"FORWARDER_BROKER_URL": url, "FORWARDER_RESULT_BACKEND": url}
    running = worker(pool=pool, env=env | model_server.env)
    running.wait_ready()
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    results = [sender.send({"args": {"numbers": [n]}}) for n in range(10)]
    assert [total(result) for result in results] == list(range(10))
    assert running.stop() == 0


def test_a_certificate_that_nobody_vouches_for_is_refused(
    worker: StartWorker, producer: MakeProducer, tls_port: int, valkey: Valkey, model_server: ModelServer
) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0"
    running = worker(
        pool="gevent",
        env={"FORWARDER_BROKER_URL": url, "FORWARDER_RESULT_BACKEND": url, **model_server.env},
    )
    running.wait_for_log("certificate verify failed")
    sender = producer(broker_url=valkey.url, backend=valkey.url)
    assert sender.send({"args": {}}).state == "PENDING"
    assert model_server.stats()["requests"] == 0
