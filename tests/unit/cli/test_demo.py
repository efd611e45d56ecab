"""What ``demo`` looks at before it starts anything."""

from __future__ import annotations

import pytest

from forwarder.cli.main import main


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--predict-url", "http://h:1/p?x"], "http://h:1/readyz"),
        (["--predict-url", "http://h:1/p", "--health-url", "http://h:2/up"], "http://h:2/up"),
    ],
)
def test_a_model_server_that_is_not_ready_is_named_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], asked: str
) -> None:
    monkeypatch.setattr("forwarder.inference.readiness.probe", lambda url, *, timeout_s: f"HTTP 503 of {url}")
    monkeypatch.setattr("forwarder.demo.run.Demo.run", lambda self: pytest.fail("it was started"))
    assert main(["demo", *words]) == 3
    said = capsys.readouterr().err
    assert f"your model server at {asked} is not ready: HTTP 503 of {asked}" in said
    assert "--health-url" in said
