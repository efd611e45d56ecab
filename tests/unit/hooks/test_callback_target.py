"""Where a callback goes and with which credentials."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from forwarder.hooks.callback_target import Target, authorization, find_target
from forwarder.hooks.errors import HookError

DEFAULT = "http://127.0.0.1:9000/default"


def test_the_payloads_url_goes_before_the_operators_and_is_not_trusted() -> None:
    target = find_target({"callback_url": "https://Hooks.Example/in?key=1#part"}, default_url=DEFAULT)
    assert target == Target(scheme="https", host="hooks.example", port=443, path="/in?key=1", trusted=False)
    assert target.host_header == "hooks.example"


@pytest.mark.parametrize("payload", [{}, {"callback_url": None}, {"callback_url": ""}, None, "text", [1]])
def test_without_one_the_operators_is_used_and_trusted(payload: Any) -> None:
    target = find_target(payload, default_url=DEFAULT)
    assert target == Target(scheme="http", host="127.0.0.1", port=9000, path="/default", trusted=True)
    assert target.host_header == "127.0.0.1:9000"
    assert find_target(payload, default_url=None) is None


def test_an_ipv6_address_has_brackets_in_the_host_header_only() -> None:
    target = find_target({"callback_url": "http://[2606:4700::1111]:8080/"}, default_url=None)
    assert target is not None
    assert (target.host, target.host_header) == ("2606:4700::1111", "[2606:4700::1111]:8080")


@pytest.mark.parametrize(
    "url",
    [
        17,
        {"url": "http://x"},
        "hooks.example/in",
        "//hooks.example",
        "ftp://hooks.example",
        "file:///etc/passwd",
        "gopher://hooks.example",
        "http://",
        "http:///path",
        "http://hooks.example:99999/",
        "http://hooks example/",
        "http://user:password@hooks.example/",
        "http://public.example@127.0.0.1/",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_shown(url: Any) -> None:
    with pytest.raises(HookError) as raised:
        find_target({"callback_url": url}, default_url=DEFAULT)
    assert str(url) not in str(raised.value)


def test_a_line_break_in_the_url_does_not_reach_the_request() -> None:
    target = find_target({"callback_url": "http://hooks.example/a\r\nx-injected: 1"}, default_url=None)
    assert target is not None
    assert target.path == "/a%0D%0Ax-injected:%201"


def test_a_targets_repr_does_not_show_its_path() -> None:
    assert "secret" not in repr(find_target({"callback_url": "https://h.example/secret"}, default_url=None))


def basic(credentials: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"kind": "basic", "username": "ann", "password": "pä:ss"}, basic("ann:pä:ss")),
        ({"username": "ann", "password": "pass"}, basic("ann:pass")),
        ({"kind": "basic", "username": "ann"}, basic("ann:")),
        (None, basic("user-1:")),
        ({}, basic("user-1:")),
        ({"kind": "mtls", "cert": "c", "key": "k"}, basic("user-1:")),
        ({"kind": "basic", "username": 7, "password": "p"}, basic("user-1:")),
        ({"kind": "basic", "username": "ann", "password": None}, basic("user-1:")),
        ("ann:pass", basic("user-1:")),
    ],
)
def test_the_payloads_credentials_are_used_else_the_endpoints_user_id(
    auth: Any, expected: dict[str, str]
) -> None:
    assert authorization({"callback_auth": auth}, user_id="user-1") == expected


@pytest.mark.parametrize("payload", [{}, None, {"callback_auth": "x"}])
def test_without_credentials_and_user_id_there_is_no_header(payload: Any) -> None:
    assert authorization(payload, user_id=None) == {}
