"""The callback hook against real receivers on the loopback address."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from forwarder.addresses import AddressGuard
from forwarder.forwarding.ports import Completion
from forwarder.hooks import callback_http
from forwarder.hooks.callback import CallbackHook
from forwarder.hooks.callback_http import CallbackPoster
from forwarder.hooks.errors import HookError
from forwarder.hooks.signing import Signer
from forwarder.settings.model import EndpointIdentity
from forwarder.testing.certificates import write_self_signed
from tests.integration.scenes import served

KEY = b"0123456789abcdef01234567"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LOOPBACK = "127.0.0.1"


@dataclass
class Receiver:
    """A webhook receiver: what came in, and how it answers."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"thanks"
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append((self.path, headers, body))
            receiver.connections.add(self.client_address)
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(receiver.body)))
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_port
    with served(server):
        yield receiver


@contextmanager
def trickling(*, first: bytes, then: bytes) -> Iterator[int]:
    """Serve an answer that begins with ``first`` and goes on with ``then``, slowly and for ever."""
    over = threading.Event()

    def serve() -> None:
        with ExitStack() as connections:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connections.enter_context(connection)
                threading.Thread(target=trickle, args=(connection,)).start()

    def trickle(connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            connection.sendall(first)
            while not over.wait(0.05):
                connection.sendall(then)
        except OSError:
            return  # the client hung up, as it should

    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(0.05)
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            server.join()


MakeHook = Callable[..., CallbackHook]


@pytest.fixture
def make_hook() -> Iterator[MakeHook]:
    """Make a hook that resolves every name to the loopback address and doesn't wait between tries."""
    with ExitStack() as stack:

        def make(**arguments: Any) -> CallbackHook:
            parts = {
                "poster": CallbackPoster(connections_max=4),
                "default_url": None,
                "guard": AddressGuard([LOOPBACK]),
                "signer": None,
                "endpoint": EndpointIdentity(user_id="user-1"),
                "resolve": lambda _host, _port: [LOOPBACK],
                "sleep": lambda _s: None,
            }
            hook = CallbackHook(**{**parts, **arguments})
            stack.callback(hook.close)
            return hook

        yield make


def completion(url: str, **payload: Any) -> Completion:
    return Completion(
        task_id="task-1",
        payload={"callback_url": url, **payload},
        response={"result": {"y": "é"}, "status_code": 200},
        succeeded=True,
    )


def test_a_receiver_gets_a_signed_result_in_the_name_of_its_host(make_hook: MakeHook) -> None:
    with receiving() as receiver:
        url = f"http://hooks.example:{receiver.port}/in?key=1"
        auth = {"kind": "basic", "username": "ann", "password": "pass"}
        assert make_hook(signer=Signer(SECRET)).deliver(completion(url, callback_auth=auth)) is True
    [(path, headers, body)] = receiver.requests
    assert path == "/in?key=1"
    assert headers["host"] == f"hooks.example:{receiver.port}"
    assert headers["authorization"] == "Basic " + base64.b64encode(b"ann:pass").decode()
    assert json.loads(body) == {"result": {"y": "é"}, "status_code": 200, "task_id": "task-1"}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert headers["webhook-id"] == "task-1"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30


@pytest.mark.parametrize("body", [b"", b"thanks", b"x" * 60_000])
def test_one_connection_serves_many_callbacks(make_hook: MakeHook, body: bytes) -> None:
    hook = make_hook()
    with receiving() as receiver:
        receiver.body = body
        for _ in range(5):
            hook.deliver(completion(f"http://hooks.example:{receiver.port}/"))
    assert len(receiver.requests) == 5
    assert len(receiver.connections) == 1


def test_a_busy_receiver_is_asked_again(make_hook: MakeHook) -> None:
    with receiving() as receiver:
        receiver.statuses = [503, 429]
        assert make_hook().deliver(completion(f"http://hooks.example:{receiver.port}/")) is True
    assert len(receiver.requests) == 3


def test_a_receiver_that_is_not_there_is_given_up(make_hook: MakeHook) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HookError, match="after 4 tries: no answer: NewConnectionError"):
        make_hook().deliver(completion(f"http://hooks.example:{port}/"))


def test_a_redirect_is_not_followed(make_hook: MakeHook) -> None:
    with receiving() as inside, receiving() as receiver:
        receiver.statuses = [307]
        receiver.headers = {"location": f"http://{LOOPBACK}:{inside.port}/secrets"}
        with pytest.raises(HookError, match="307"):
            make_hook().deliver(completion(f"http://hooks.example:{receiver.port}/"))
    assert inside.requests == []


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:7f00:1]"]
)
def test_a_payload_does_not_reach_the_workers_own_machine(host: str) -> None:
    hook = CallbackHook(
        poster=CallbackPoster(connections_max=1),
        default_url=None,
        guard=AddressGuard(),
        signer=None,
        endpoint=EndpointIdentity(),
        sleep=lambda _s: None,
    )
    with receiving() as receiver, pytest.raises(HookError, match="not public"):
        hook.deliver(completion(f"http://{host}:{receiver.port}/"))
    assert receiver.connections == set()


def test_the_operators_own_url_may_be_on_this_machine() -> None:
    with receiving() as receiver:
        hook = CallbackHook(
            poster=CallbackPoster(connections_max=1),
            default_url=f"http://localhost:{receiver.port}/in",
            guard=AddressGuard(),
            signer=None,
            endpoint=EndpointIdentity(),
            sleep=lambda _s: None,
        )
        assert hook.deliver(Completion(task_id="t", payload={}, response={}, succeeded=True)) is True
        hook.close()


def test_proxy_variables_are_ignored(make_hook: MakeHook, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with receiving() as receiver:
        assert make_hook().deliver(completion(f"http://hooks.example:{receiver.port}/")) is True


def test_headers_that_trickle_for_ever_are_cut_off(
    make_hook: MakeHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_http, "HEADERS_TIMEOUT_S", 0.3)
    hook = make_hook()
    started = time.monotonic()
    with (
        trickling(first=b"HTTP/1.1 200 OK\r\n", then=b"x-more: 1\r\n") as port,
        pytest.raises(HookError, match="no answer"),
    ):
        hook.deliver(completion(f"http://hooks.example:{port}/"))
    assert 1.0 < time.monotonic() - started < 10  # four tries


def test_the_cut_works_for_greenlets_too() -> None:
    program = """
        from gevent import monkey; monkey.patch_all()
        import sys, time
        import urllib3
        from forwarder.hooks import callback_http
        from forwarder.hooks.callback_target import parse_target
        callback_http.HEADERS_TIMEOUT_S = 0.3
        poster = callback_http.CallbackPoster(connections_max=1)
        target = parse_target(f"http://hooks.example:{sys.argv[1]}/", trusted=True)
        started = time.monotonic()
        try:
            poster.post(target, address="127.0.0.1", headers={}, body=b"{}")
        except urllib3.exceptions.HTTPError:
            print(time.monotonic() - started)
    """
    with trickling(first=b"HTTP/1.1 200 OK\r\n", then=b"x-more: 1\r\n") as port:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert 0.2 < float(done.stdout) < 5, done.stderr


def test_a_body_that_trickles_for_ever_does_not_hold_the_slot(
    make_hook: MakeHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_http, "BODY_TIMEOUT_S", 0.3)
    hook = make_hook()
    started = time.monotonic()
    with trickling(first=b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", then=b"x") as port:
        assert hook.deliver(completion(f"http://hooks.example:{port}/")) is True
        assert time.monotonic() - started < 5


def test_a_huge_body_is_not_read(make_hook: MakeHook) -> None:
    hook = make_hook()
    with receiving() as receiver:
        receiver.body = b"x" * 50_000_000
        for _ in range(2):
            assert hook.deliver(completion(f"http://hooks.example:{receiver.port}/")) is True
    assert len(receiver.connections) == 2


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for hooks.example with its key, made the system's only authority."""
    path = write_self_signed(tmp_path / "hooks.pem", x509.DNSName("hooks.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


def test_the_certificate_is_checked_against_the_name_not_the_address(
    make_hook: MakeHook, certificate: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    names: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    hook = make_hook()
    with receiving(tls) as receiver:
        for _ in range(2):
            assert hook.deliver(completion(f"https://hooks.example:{receiver.port}/")) is True
        with pytest.raises(HookError, match="SSLError"):
            hook.deliver(completion(f"https://other.example:{receiver.port}/"))
    assert set(names) == {"hooks.example", "other.example"}
    assert len(receiver.requests) == 2
    assert len(receiver.connections) == 1


def test_an_authority_that_the_system_does_not_know_is_refused(
    make_hook: MakeHook, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with receiving(tls) as receiver, pytest.raises(HookError, match="SSLError"):
        make_hook().deliver(completion(f"https://hooks.example:{receiver.port}/"))
    assert receiver.requests == []
