"""Where the payload comes from, and which payloads are refused before anything is sent."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from forwarder.cli.submit import read_payload

PAYLOAD = {"args": {"x": "ä"}}
TEXT = '{"args": {"x": "ä"}}'


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_the_payload_is_the_argument() -> None:
    assert read_payload(TEXT, None) == PAYLOAD


def test_the_payload_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(TEXT, encoding="utf-8")
    assert read_payload(None, str(tmp_path / "p.json")) == PAYLOAD


@pytest.mark.parametrize(("argument", "path"), [("-", None), (None, "-")])
def test_the_payload_is_standard_input(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, path: str | None
) -> None:
    standard_input(monkeypatch, TEXT.encode())
    assert read_payload(argument, path) == PAYLOAD


@pytest.mark.parametrize(("argument", "path"), [(None, None), (TEXT, "p.json")])
def test_there_must_be_one_payload(argument: str | None, path: str | None) -> None:
    with pytest.raises(click.UsageError, match="either"):
        read_payload(argument, path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON at line 1, column 1"),
        ('{"args": hunter2}', "not JSON at line 1, column 10"),
        ('{"args": NaN}', "not JSON"),
        ('{"args": -Infinity}', "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        ('["hunter2"]', "not a JSON object"),
        ('"hunter2"', "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused_without_quoting_it(text: str, words: str) -> None:
    with pytest.raises(click.UsageError, match=words) as refused:
        read_payload(text, None)
    assert "hunter2" not in refused.value.message
    assert refused.value.exit_code == 2


def test_a_payload_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, b'{"args": "\xff"}')
    with pytest.raises(click.UsageError, match="not UTF-8"):
        read_payload("-", None)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(click.UsageError, match="No such file"):
        read_payload(None, "/absent/payload.json")
