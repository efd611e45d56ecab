"""What the command makes of its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.cli.loadtest import given
from forwarder.cli.main import main
from forwarder.settings import resolve


@pytest.mark.parametrize(
    "option",
    [
        ["--tasks", "0"],
        ["--sleep", "soon"],
        ["--payload", "2..1"],
        ["--arrival", "steady"],
        ["--response", "x"],
    ],
)
def test_a_shape_that_can_not_be_is_wrong_usage(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_a_file_that_is_no_report_can_not_be_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main(["loadtest", "--compare", str(tmp_path / "a.json")]) == 2
    assert "no report of a load test" in capsys.readouterr().err


def test_a_deployed_worker_is_watched_only_where_its_broker_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORWARDER_BROKER_URL", raising=False)
    monkeypatch.delenv("FORWARDER_SQS_QUEUE_URL", raising=False)
    assert main(["loadtest", "--worker-pid", "1"]) == 2
    assert "--broker-url" in capsys.readouterr().err


def test_an_own_worker_has_every_setting_that_was_given_and_reads_it_as_it_was_meant() -> None:
    flags = {
        "autoscale": "100,2",
        "memory_limit_mb": "2048",
        "pool": "gevent",
        "track_started": "true",
        "drain_timeout_s": "2.5",
        "queues": "a,b",
        "endpoint_labels": '{"team": "x"}',
    }
    resolved = resolve(flags, {}, {})
    env = given(resolved)
    assert len(env) == len(flags)
    assert resolve({}, env, {}).settings == resolved.settings


def test_help_needs_nothing_that_only_a_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "--help"]) == 0
    assert "--arrival" in capsys.readouterr().out
