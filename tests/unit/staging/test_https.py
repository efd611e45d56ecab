"""Which https:// URLs are asked for, and what an answer has to be. The rest is tested over real TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from urllib3 import HTTPResponse

from forwarder.addresses import ListedHosts
from forwarder.forwarding.errors import InputUnavailable, InvalidPayload
from forwarder.lookups import Lookups
from forwarder.staging.https import HttpsObject, HttpsSource, _check

SECRET = "X-Amz-Signature=hunter2"


def source(resolve: Callable[[str, int], list[str]]) -> HttpsSource:
    permits = ListedHosts(["*.example.com", "10.0.0.0/8"]).permits
    return HttpsSource(permits=permits, tls=ssl.create_default_context(), resolve=resolve)


def test_names_are_looked_up_a_few_at_a_time() -> None:
    made = HttpsSource(permits=ListedHosts([]).permits, tls=ssl.create_default_context())
    assert isinstance(made._resolve, Lookups)


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example.com/x",
        "https://",
        "https:///x",
        "https://user:hunter2@files.example.com/x",
        "https://files.example.com:x/",
        "https://[::1/",
        "files.example.com/x",
    ],
)
def test_a_url_that_can_not_be_used_is_refused_without_a_look_up(url: str) -> None:
    with pytest.raises(InvalidPayload) as raised:
        source(lambda host, port: pytest.fail("looked up")).open(url)
    assert "hunter2" not in raised.value.to_custom()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("files.example.org", "93.184.216.34"),  # public, but nobody named it
        ("files.example.com", "127.0.0.1"),  # the name's owner decides what it resolves to
        ("files.example.com", "169.254.169.254"),
        ("169.254.169.254", "169.254.169.254"),
        ("[fd00:ec2::254]", "fd00:ec2::254"),
    ],
)
def test_a_host_that_is_not_allowed_is_never_connected_to(host: str, address: str) -> None:
    asked = []

    def resolve(name: str, port: int) -> list[str]:
        asked.append((name, port))
        return [address]

    with pytest.raises(InvalidPayload, match="not allowed here") as raised:
        source(resolve).open(f"https://{host}/x?{SECRET}")
    assert asked == [(host.strip("[]"), 443)]
    assert "hunter2" not in raised.value.to_custom()


def test_a_name_that_is_not_found_may_be_found_later() -> None:
    def resolve(name: str, port: int) -> list[str]:
        raise OSError(-3, "Temporary failure in name resolution")

    with pytest.raises(InputUnavailable, match="not found") as raised:
        source(resolve).open("https://files.example.com/x")
    assert raised.value.again


def answer(status: int, headers: dict[str, str]) -> HTTPResponse:
    return HTTPResponse(status=status, headers=headers, preload_content=False)


SIZED = {"content-length": "5"}


@pytest.mark.parametrize(
    ("status", "after_bytes", "again"),
    [
        (206, 0, False),
        (204, 0, False),
        (301, 0, False),
        (403, 0, False),
        (404, 0, False),
        (412, 5, False),
        (416, 5, False),
        (429, 0, True),
        (503, 5, True),
        (200, 5, False),  # the server doesn't know Range: the same bytes once more
    ],
)
def test_whatever_is_not_the_wanted_bytes_is_refused_by_its_status(
    status: int, after_bytes: int, again: bool
) -> None:
    with pytest.raises(InputUnavailable) as raised:
        _check(answer(status, {"location": f"https://host/?{SECRET}"}), after_bytes)
    assert raised.value.metadata == f"HTTP {status}"
    assert raised.value.again is again
    assert "hunter2" not in raised.value.to_custom()


def test_a_range_that_begins_elsewhere_is_refused() -> None:
    _check(answer(206, {"content-range": "bytes 5-9/10"} | SIZED), 5)
    with pytest.raises(InputUnavailable, match="can't go on"):
        _check(answer(206, {"content-range": "bytes 4-9/10"} | SIZED), 5)


def test_an_answer_that_ends_with_its_connection_could_have_broken_off() -> None:
    _check(answer(200, SIZED), 0)
    _check(answer(200, {"transfer-encoding": "Chunked"}), 0)
    with pytest.raises(InputUnavailable, match="no length") as raised:
        _check(answer(200, {}), 0)
    assert raised.value.again


@pytest.mark.parametrize(
    ("headers", "size_bytes", "tag"),
    [
        ({"content-length": "12", "etag": '"a"'}, 12, '"a"'),
        ({"etag": 'W/"a"'}, None, None),  # two versions may have the same weak one
        ({"content-length": "-1", "etag": "a"}, None, None),
        ({}, None, None),
    ],
)
def test_size_and_tag_are_believed_only_where_they_are_good_for_something(
    headers: dict[str, str], size_bytes: int | None, tag: str | None
) -> None:
    connection: Any = None
    found = HttpsObject(connection, answer(200, headers))
    assert (found.size_bytes, found.tag) == (size_bytes, tag)
