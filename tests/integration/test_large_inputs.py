"""Large bodies by way of the disk: real workers, real S3 clients, real TLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from cryptography import x509

from benchmarks.endless import Endless, summed
from forwarder.addresses import ListedHosts
from forwarder.cloud.objects import S3ObjectStore
from forwarder.cloud.session import AwsSession, s3_client
from forwarder.forwarding.errors import ForwarderError, InputUnavailable, InvalidPayload
from forwarder.forwarding.ports import StagedBody
from forwarder.staging import https
from forwarder.staging.download import Source
from forwarder.staging.folder import StagingFolder
from forwarder.staging.https import HttpsSource
from forwarder.staging.staging import Staging
from forwarder.staging.threshold import Threshold
from forwarder.testing.aws import ExistingCloud, LocalStack, Moto
from forwarder.testing.aws_resources import client, create_bucket
from forwarder.testing.certificates import write_self_signed
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, PATIENCE_S, POOLS, RedisScene, idle, served, wait_until

MIB = 1024 * 1024
LARGE = bytes(range(256)) * 4096 * 2
LOOPBACK = "127.0.0.1"
SECRET = "X-Amz-Signature=hunter2"


@dataclass
class Shop:
    """An HTTP server with one object.

    Each of ``cuts`` ends a connection after so many bytes; then the tag is ``tag_then``.
    """

    port: int = 0
    tag: str = '"1"'
    tag_then: str = '"1"'
    cuts: list[int] = field(default_factory=list)
    stalls_after: int | None = None
    chunked: bool = False
    status: int = 200
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and range
    stalled: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        self.asked.append((handler.path, handler.headers.get("Range", "")))
        start = int((re.findall(r"\d+", handler.headers.get("Range", "")) or ["0"])[0])
        if handler.headers.get("If-Match", self.tag) != self.tag:
            self.status = 412
        content = LARGE[start:] if self.status == 200 else b""
        handler.send_response(206 if content and start else self.status)
        handler.send_header("Location", f"https://elsewhere/?{SECRET}")
        handler.send_header("ETag", self.tag)
        handler.send_header("Content-Range", f"bytes {start}-{len(LARGE) - 1}/{len(LARGE)}")
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (content, b""))
        else:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.stalls_after is not None:
            handler.wfile.write(content[: self.stalls_after])
            self.stalled.set()
            handler.rfile.read(1)  # until the client closes
            self.gone.set()
        cut = self.cuts.pop(0) if self.cuts else len(content)
        self.tag = self.tag_then
        handler.wfile.write(content[:cut])


@contextmanager
def open_shop(tls: ssl.SSLContext | None = None) -> Iterator[Shop]:
    shop = Shop()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shop.serve(self)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    shop.port = server.server_port
    with served(server):
        yield shop


def staging(folder: Path, **sources: Source) -> Staging:
    return Staging(
        folder=StagingFolder(parent=folder, bytes_max=64 * MIB, overrun_bytes=MIB, boot="boot"),
        sources=sources,
        threshold=Threshold(256 * 1024),
        input_bytes_max=16 * MIB,
        answer_bytes_max=MIB,
        timeout_s=30.0,
    )


def staged_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def fetched(staging: Staging, url: str) -> bytes:
    with staging.fetch(url) as body:
        assert isinstance(body, StagedBody)
        return body.path.read_bytes()


@pytest.fixture(scope="module")
def endless() -> Iterator[Endless]:
    with Endless() as server:
        yield server


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Shop, Any]]:
    with open_shop() as shop:
        env = {"AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{shop.port}", "AWS_REGION": "us-east-1"}
        for name, value in (env | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}).items():
            monkeypatch.setenv(name, value)
        made = s3_client(AwsSession(), max_pool_connections=1)
        yield shop, S3ObjectStore(client=lambda: made)


@pytest.mark.parametrize("pool", POOLS)
def test_a_large_body_goes_in_and_a_large_answer_out_by_way_of_the_disk(
    pool: str, redis_scene: RedisScene, endless: Endless, tmp_path: Path
) -> None:
    env = {**endless.env, "FORWARDER_STAGE_FOLDER": str(tmp_path)}
    into = redis_scene.worker(pool=pool, env=redis_scene.env | env)
    into.wait_ready()
    sent = [redis_scene.sender.send({"url": f"s3://bucket/{5 * MIB + number}"}) for number in range(4)]
    for number, result in enumerate(sent):
        assert result.get(timeout=PATIENCE_S)["result"] == summed(5 * MIB + number)
    assert into.stop() == 0
    key = f"/bucket/{uuid.uuid4().hex}"
    # Past the bound of an answer in memory.
    own = {
        "FORWARDER_PREDICT_URL": f"{endless.url}/predict/{9 * MIB}",
        "FORWARDER_RESPONSE_BYTES_MAX": str(MIB),
    }
    redis_scene.worker(pool=pool, env=redis_scene.env | env | own).wait_ready()
    result = redis_scene.sender.send({"args": 1, "destination_path": f"s3:/{key}"})
    assert result.get(timeout=PATIENCE_S)["result"] == {"destination_path": f"s3:/{key}"}
    assert endless.stats()["put"][key] == summed(9 * MIB)
    assert staged_in(tmp_path) == []


@pytest.mark.parametrize("pool", POOLS)
def test_the_folders_bound_holds_tasks_back_over_all_processes(
    pool: str, redis_scene: RedisScene, endless: Endless, tmp_path: Path
) -> None:
    bounds = {"INPUT_BYTES_MAX": 6 * MIB, "DESTINATION_BYTES_MAX": MIB, "STAGE_BYTES_MAX": 7 * MIB}
    env = {f"FORWARDER_{name}": str(value) for name, value in bounds.items()}
    env |= {**endless.env, "FORWARDER_STAGE_FOLDER": str(tmp_path), "FORWARDER_CONCURRENCY": "3"}
    started = redis_scene.worker(pool=pool, env=redis_scene.env | env)
    started.wait_ready()
    sent = [redis_scene.sender.send({"url": f"s3://bucket/{5 * MIB + number}"}) for number in range(6)]
    peak = 0
    while not all(result.ready() for result in sent):
        sizes = []
        for path in staged_in(tmp_path):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        peak = max(peak, sum(sizes))
    assert [result.get()["result"]["bytes"] for result in sent] == [5 * MIB + number for number in range(6)]
    assert 5 * MIB <= peak <= 6 * MIB
    assert "staging_full" in started.log()


@pytest.mark.parametrize(("pool", "s3"), [("prefork", "moto"), ("gevent", "moto"), ("gevent", "localstack")])
def test_what_a_dead_worker_had_staged_is_used_by_the_next(
    pool: str,
    s3: str,
    request: pytest.FixtureRequest,
    redis_scene: RedisScene,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    cloud: Moto | LocalStack | ExistingCloud = request.getfixturevalue(s3)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    create_bucket(cloud.env, bucket)
    body = {"id": "staged", "numbers": [1, 2], "behaviour": HELD, "padding": "x" * MIB}
    client(cloud.env, "s3").put_object(Bucket=bucket, Key="body", Body=json.dumps(body).encode())
    env = redis_scene.env | cloud.env | {"FORWARDER_STAGE_FOLDER": str(tmp_path)}
    env |= {"FORWARDER_VISIBILITY_TIMEOUT_S": "3"}
    first = redis_scene.worker(pool=pool, env=env)
    first.wait_ready()
    result = redis_scene.sender.send({"url": f"s3://{bucket}/body"})
    model_server.wait_in_flight(1)
    (path,) = staged_in(tmp_path)
    orphans = first.children()
    first.kill()
    for pid in orphans:
        os.kill(pid, 9)
    wait_until(lambda: idle(model_server))
    second = redis_scene.worker(pool=pool, env=env)
    model_server.wait_in_flight(1)
    assert staged_in(tmp_path) == [path]
    assert "staging_leftover_used bytes=1048" in second.log()
    model_server.control(release=True)
    assert result.get(timeout=PATIENCE_S)["result"]["sum"] == 3
    wait_until(lambda: staged_in(tmp_path) == [])


def test_a_task_that_is_revoked_while_its_input_comes_leaves_neither_connection_nor_file(
    redis_scene: RedisScene, tmp_path: Path
) -> None:
    with open_shop() as shop:
        shop.stalls_after = MIB
        env = {"AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{shop.port}", "AWS_REGION": "us-east-1"}
        env |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        env |= {"FORWARDER_STAGE_FOLDER": str(tmp_path), "FORWARDER_CONCURRENCY": "1"}
        redis_scene.worker(pool="gevent", env=redis_scene.env | env).wait_ready()
        result = redis_scene.sender.send({"url": "s3://bucket/key"})
        assert shop.stalled.wait(PATIENCE_S)
        wait_until(lambda: len(staged_in(tmp_path)) == 1)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE_S)
        assert shop.gone.wait(PATIENCE_S)
        assert staged_in(tmp_path) == []
        wait_until(lambda: redis_scene.held() == 0)


def test_a_download_from_s3_that_breaks_off_goes_on_where_it_was(s3: Any, tmp_path: Path) -> None:
    shop, source = s3
    shop.cuts = [MIB, 1000]
    assert fetched(staging(tmp_path, s3=source), "s3://bucket/key") == LARGE
    (_, first), (_, second), (_, third) = shop.asked
    assert first == ""
    ranges = [int(found.removeprefix("bytes=").removesuffix("-")) for found in (second, third)]
    assert 0 < ranges[0] <= MIB < ranges[0] + 1000
    assert ranges[1] == ranges[0] + 1000


def test_an_object_in_s3_that_changed_meanwhile_is_not_put_together_from_two(s3: Any, tmp_path: Path) -> None:
    shop, source = s3
    shop.cuts, shop.tag_then = [MIB], '"2"'
    large = staging(tmp_path, s3=source)
    with pytest.raises(InputUnavailable) as raised, large.fetch("s3://bucket/key"):
        pytest.fail("it was put together")
    assert raised.value.metadata == "412"
    assert staged_in(tmp_path) == []


class Tls:
    """A shop behind TLS on 127.0.0.1, which is what ``files.example`` resolves to, and a source for it."""

    def __init__(self, shop: Shop, certificate: Path, allow: list[str]) -> None:
        trusted = ssl.create_default_context(cafile=certificate)
        self.shop = shop
        self.source = HttpsSource(
            permits=ListedHosts(allow).permits, tls=trusted, resolve=lambda host, port: [LOOPBACK]
        )
        self.url = f"https://files.example:{shop.port}/a%20b?{SECRET}"


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    certificate = write_self_signed(tmp_path / "tls.pem", x509.DNSName("files.example"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with open_shop(context) as shop:
        yield Tls(shop, certificate, ["files.example", "127.0.0.0/8"])


def refused(tls: Tls, folder: Path, url: str | None = None) -> ForwarderError:
    """Return the error of a body that can't be had, which must not show the URL's secret."""
    with pytest.raises(ForwarderError) as raised, staging(folder, https=tls.source).fetch(url or tls.url):
        pass
    assert "hunter2" not in raised.value.to_custom()
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return raised.value


def test_a_body_behind_https_comes_from_the_address_that_was_checked(tls: Tls, tmp_path: Path) -> None:
    tls.shop.cuts = [MIB]
    assert fetched(staging(tmp_path, https=tls.source), tls.url) == LARGE
    assert tls.shop.asked[0] == (f"/a%20b?{SECRET}", "")
    assert tls.shop.asked[1][1].startswith("bytes=")


def test_a_body_whose_length_nobody_says_is_whole_or_none(tls: Tls, tmp_path: Path) -> None:
    tls.shop.chunked, tls.shop.tag, tls.shop.tag_then = True, "", ""
    assert fetched(staging(tmp_path, https=tls.source), tls.url) == LARGE
    tls.shop.cuts = [MIB]
    error = refused(tls, tmp_path)
    assert (error.code, error.metadata) == ("input_unavailable", "ProtocolError")
    assert len(tls.shop.asked) == 2


@pytest.mark.parametrize("status", [302, 307])
def test_redirects_are_not_followed(tls: Tls, tmp_path: Path, status: int) -> None:
    tls.shop.status = status
    error = refused(tls, tmp_path)
    assert (error.code, error.metadata) == ("input_unavailable", f"HTTP {status}")
    assert len(tls.shop.asked) == 1


def test_a_certificate_of_another_name_is_not_believed(tls: Tls, tmp_path: Path) -> None:
    url = tls.url.replace("files.example", "other.example")
    error = refused(tls, tmp_path, url)
    assert error.code == "input_unavailable"
    assert tls.shop.asked == []


def test_a_private_address_needs_its_network_on_the_list(tls: Tls, tmp_path: Path) -> None:
    certificate = tmp_path / "tls.pem"
    unlisted = Tls(tls.shop, certificate, ["files.example"])
    error = refused(unlisted, tmp_path)
    assert isinstance(error, InvalidPayload)
    assert tls.shop.asked == []


def test_a_server_whose_headers_never_end_is_cut_off(
    tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "HEADERS_TIMEOUT_S", 0.3)
    monkeypatch.setattr("forwarder.staging.download.BROKEN_MAX", 0)
    over = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        cut_at = time.monotonic() + 10.0
        while not over.wait(0.05) and time.monotonic() < cut_at:
            handler.wfile.write(b"y")

    monkeypatch.setattr(tls.shop, "serve", trickle)
    began_s = time.monotonic()
    try:
        assert refused(tls, tmp_path).code == "input_unavailable"
        assert time.monotonic() - began_s < 8.0
    finally:
        over.set()
