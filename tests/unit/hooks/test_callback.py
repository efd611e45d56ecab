"""The callback hook: what it sends, where it refuses to go, and when it tries again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from urllib3.exceptions import ProtocolError

from forwarder.addresses import AddressGuard
from forwarder.forwarding.ports import Completion
from forwarder.hooks.callback import TRIES_MAX, CallbackHook, asked_wait
from forwarder.hooks.callback_http import Reply
from forwarder.hooks.callback_target import Target
from forwarder.hooks.errors import HookError
from forwarder.hooks.signing import Signer
from forwarder.lookups import Lookups
from forwarder.settings.model import EndpointIdentity

PUBLIC = ["93.184.216.34", "2606:4700::1111"]
OK = Reply(200)
BROKEN = ProtocolError("https://hooks.example/secret")
URL = "https://hooks.example/in"


@dataclass
class Sent:
    target: Target
    address: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Scene:
    """A hook whose poster answers in turn and whose resolver is a table."""

    replies: list[Reply | Exception] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=lambda: {"hooks.example": PUBLIC})
    default_url: str | None = None
    allow: tuple[str, ...] = ()
    secret: str | None = None
    now: float = 1_700_000_000.5
    sent: list[Sent] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)

    def post(self, target: Target, *, address: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.sent.append(Sent(target, address, headers, json.loads(body)))
        reply = self.replies.pop(0) if self.replies else OK
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self.sent.clear()

    def resolve(self, host: str, _port: int) -> list[str]:
        self.resolved.append(host)
        if host not in self.names:
            raise OSError("no such host")
        return self.names[host]

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now += seconds

    def deliver(self, payload: Any = None, response: Any = None) -> bool:
        hook = CallbackHook(
            poster=self,
            default_url=self.default_url,
            guard=AddressGuard(self.allow),
            signer=Signer(self.secret) if self.secret else None,
            endpoint=EndpointIdentity(user_id="user-1"),
            resolve=self.resolve,
            clock=lambda: self.now,
            sleep=self.sleep,
            uniform=lambda _low, high: high,
        )
        payload = {"callback_url": URL} if payload is None else payload
        response = {"result": {"y": "é"}, "status_code": 200} if response is None else response
        return hook.deliver(Completion(task_id="t-1", payload=payload, response=response, succeeded=True))


def test_the_result_is_posted_with_the_task_id_to_the_address_that_was_checked() -> None:
    scene = Scene()
    assert scene.deliver() is True
    [sent] = scene.sent
    assert sent.body == {"result": {"y": "é"}, "status_code": 200, "task_id": "t-1"}
    assert (sent.target.host, sent.address) == ("hooks.example", PUBLIC[0])
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["authorization"].startswith("Basic ")
    assert scene.resolved == ["hooks.example"]


def test_a_task_without_a_url_needs_nothing() -> None:
    scene = Scene()
    assert scene.deliver(payload={"args": 1}) is False
    assert scene.sent == []


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "fd00:ec2::254", "::ffff:10.0.0.1"])
def test_a_payloads_url_that_leads_inside_is_refused_and_nothing_is_sent(address: str) -> None:
    scene = Scene(names={"hooks.example": [address]})
    with pytest.raises(HookError, match="not public"):
        scene.deliver()
    assert scene.sent == []
    assert scene.waits_s == []


def test_of_a_mixed_answer_only_the_public_address_is_used() -> None:
    scene = Scene(names={"hooks.example": ["10.0.0.1", PUBLIC[0]]}, replies=[BROKEN, BROKEN])
    scene.deliver()
    assert {sent.address for sent in scene.sent} == {PUBLIC[0]}


def test_a_name_that_turns_inside_between_two_tries_is_refused_at_the_second() -> None:
    scene = Scene(replies=[Reply(503)])
    answers = iter([PUBLIC, ["127.0.0.1"]])
    scene.resolve = lambda *_: next(answers)  # type: ignore[method-assign]
    with pytest.raises(HookError, match="not public"):
        scene.deliver()
    assert [sent.address for sent in scene.sent] == [PUBLIC[0]]


def test_what_the_operator_allows_is_let_through() -> None:
    scene = Scene(names={"hooks.example": ["10.0.0.1"]}, allow=("10.0.0.0/8",))
    assert scene.deliver() is True


def test_the_operators_own_url_goes_anywhere() -> None:
    scene = Scene(names={"127.0.0.1": ["127.0.0.1"]}, default_url="http://127.0.0.1:9000/in")
    assert scene.deliver(payload={}) is True
    assert scene.sent[0].address == "127.0.0.1"


@pytest.mark.parametrize("problem", [Reply(503), Reply(500), Reply(429), Reply(408), BROKEN, OSError("dns")])
def test_later_and_no_answer_are_tried_again_at_the_next_address(problem: Reply | Exception) -> None:
    scene = Scene(replies=[problem, problem])
    assert scene.deliver() is True
    assert [sent.address for sent in scene.sent] == [PUBLIC[0], PUBLIC[1], PUBLIC[0]]
    assert scene.waits_s == [0.5, 1.0]


def test_a_name_that_cannot_be_resolved_is_tried_again() -> None:
    scene = Scene(names={})
    with pytest.raises(HookError, match="OSError"):
        scene.deliver()
    assert len(scene.resolved) == TRIES_MAX


def test_a_receiver_that_stays_broken_is_given_up_and_not_named() -> None:
    scene = Scene(replies=[BROKEN] * 100)
    with pytest.raises(HookError) as raised:
        scene.deliver()
    assert "hooks.example" not in str(raised.value)
    assert len(scene.sent) == TRIES_MAX


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 410])
def test_a_redirect_and_a_no_end_the_delivery_at_once(status: int) -> None:
    scene = Scene(replies=[Reply(status)])
    with pytest.raises(HookError, match=str(status)):
        scene.deliver()
    assert len(scene.sent) == 1


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("3", 3.0),
        ("0", 0.5),
        ("", 0.5),
        ("soon", 0.5),
        ("-3", 0.5),
        ("1e9", 0.5),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 9.5),
        ("Tue, 14 Nov 2023 22:13:30 -0000", 9.5),
        ("Tue Nov 14 22:13:30 2023", 9.5),
        ("Mon, 13 Nov 2023 22:13:30 GMT", 0.5),
        ("Tue, 14 Nov 2023 22:13:30 +99999999999999", 0.5),
    ],
)
def test_retry_after_is_honoured_where_it_is_longer_than_the_backoff(retry_after: str, wait_s: float) -> None:
    scene = Scene(replies=[Reply(429, retry_after)])
    assert scene.deliver() is True
    assert scene.waits_s == [wait_s]


@pytest.mark.parametrize("retry_after", ["31", "Wed, 15 Nov 2023 22:13:30 GMT", "9" * 400])
def test_a_receiver_that_wants_to_be_left_alone_for_longer_is_given_up(retry_after: str) -> None:
    scene = Scene(replies=[Reply(503, retry_after)])
    with pytest.raises(HookError, match="503"):
        scene.deliver()
    assert len(scene.sent) == 1


def test_each_try_is_signed_with_its_own_time_and_the_same_id() -> None:
    scene = Scene(replies=[Reply(503, "2")], secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    scene.deliver()
    first, second = (sent.headers for sent in scene.sent)
    assert first["webhook-id"] == second["webhook-id"] == "t-1"
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1700000000", "1700000002")
    assert first["webhook-signature"] != second["webhook-signature"]


def test_without_a_secret_nothing_is_signed() -> None:
    scene = Scene()
    scene.deliver()
    assert not [name for name in scene.sent[0].headers if name.startswith("webhook-")]


@pytest.mark.parametrize(
    ("status", "wait_s"),
    [(302, None), (404, None), (410, None), (408, 0.0), (429, 0.0), (599, 0.0)],
)
def test_what_a_status_asks_for(status: int, wait_s: float | None) -> None:
    assert asked_wait(Reply(status), now=0.0) == wait_s


def test_names_are_looked_up_a_few_at_a_time() -> None:
    scene = Scene()
    hook = CallbackHook(
        poster=scene,
        default_url=None,
        guard=AddressGuard(()),
        signer=None,
        endpoint=EndpointIdentity(),
    )
    assert isinstance(hook._resolve, Lookups)
