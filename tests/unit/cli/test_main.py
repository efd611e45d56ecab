"""Which command runs, with which settings, and what the exit code says."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forwarder
from forwarder.cli.main import main
from forwarder.pool import PoolError
from forwarder.settings import Resolved, Settings
from forwarder.settings.table import SPECS


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FORWARDER_CONFIG",
        *(name for spec in SPECS for name in (spec.environ, *spec.other_environ)),
    ):
        monkeypatch.delenv(name, raising=False)


class Worker:
    """Stands in for forwarder.worker: remembers its settings."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []
        self.outcome: int | Exception = 0

    def run(self, resolved: Resolved) -> int:
        self.settings.append(resolved.settings)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    fake = Worker()
    monkeypatch.setitem(sys.modules, "forwarder.worker", SimpleNamespace(run=fake.run))
    monkeypatch.setattr(forwarder, "worker", SimpleNamespace(run=fake.run), raising=False)
    return fake


@pytest.mark.parametrize("argv", [[], ["run"]])
def test_the_worker_is_the_default_command(worker: Worker, argv: list[str]) -> None:
    assert main(argv) == 0
    assert worker.settings == [Settings()]


@pytest.mark.parametrize("argv", [["--concurrency", "8"], ["run", "--concurrency=8"], ["--num-workers", "8"]])
def test_options_without_a_command_are_the_workers(worker: Worker, argv: list[str]) -> None:
    assert main(argv) == 0
    assert worker.settings == [Settings(concurrency=8)]


def test_lists_may_be_repeated_or_separated_by_commas(worker: Worker) -> None:
    argv = ["--queue", "a", "--queue", "b,c", "--hooks", "callback", "--callback-allow", "*.local,10.0.0.0/8"]
    assert main(argv) == 0
    (settings,) = worker.settings
    assert settings.queues == ("a", "b", "c")
    assert settings.callback_allow == ("*.local", "10.0.0.0/8")


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_a_configuration_file_is_read(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    file = tmp_path / "f.toml"
    file.write_text('concurrency = 9\nendpoint_labels = {team = "search"}\n')
    monkeypatch.setenv("FORWARDER_CONFIG", str(file) if way == "environment" else "/absent.yaml")
    assert main(["--config", str(file)] if way == "flag" else []) == 0
    (settings,) = worker.settings
    assert settings.concurrency == 9
    assert settings.endpoint.labels == {"team": "search"}


def test_the_ancestors_whole_command_line_works(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service--forwarder.yaml"
    file.write_text("forwarder:\n  sync: {}\n  async:\n    user_port: 1\n    batch_route: null\n")
    monkeypatch.setenv("REDIS_HOST", "redis")
    monkeypatch.setenv("S3_BUCKET", "bucket")
    words = (
        f"--config {file} --set forwarder.async.user_port=5005 --set forwarder.async.predict_route=/predict "
        "--set forwarder.async.healthcheck_route=/readyz --queue Q --task-visibility VISIBILITY_24H "
        "--num-workers 3 --broker-type redis --backend-protocol s3"
    )
    assert main(words.split()) == 0
    (settings,) = worker.settings
    assert settings.predict_url == "http://localhost:5005/predict"
    assert settings.broker_url == "redis://redis:6379/3"
    assert settings.result_backend == "s3://bucket/tmp/celery/"
    assert settings.queues == ("Q",)
    assert settings.concurrency == 3
    assert settings.serialize_results_as_string
    assert capsys.readouterr().err == ""


def test_warnings_are_said_before_the_worker_starts(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--sqs-wait", "5"]) == 0
    assert "the broker is not sqs://" in capsys.readouterr().err


def test_the_workers_exit_code_is_the_programs(worker: Worker) -> None:
    worker.outcome = 1
    assert main([]) == 1


def test_a_pool_that_can_not_be_used_is_2(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    worker.outcome = PoolError("gevent pool: socket not patched")
    assert main(["run"]) == 2
    assert "socket not patched" in capsys.readouterr().err


def test_aws_region_alone_is_enough(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    assert main([]) == 0
    assert os.environ["AWS_DEFAULT_REGION"] == "eu-west-1"


@pytest.mark.parametrize(
    "argv",
    [["bogus"], ["--bogus"], ["run", "extra"], ["--concurrency"], ["result"], ["submit", "--priority", "x"]],
)
def test_wrong_usage_is_2(worker: Worker, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 2
    assert worker.settings == []
    assert "Error" in capsys.readouterr().err


def test_a_configuration_file_that_is_not_there_is_2(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", "/absent.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_is_1(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: Settings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(forwarder.worker, "run", interrupt)  # type: ignore[attr-defined]
    assert main([]) == 1


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert forwarder.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["check", "--help"], ["submit", "--help"]])
def test_help_lists_every_setting_with_its_environment_name(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    text: Any = capsys.readouterr().out
    for spec in SPECS:
        for name in (spec.flag, *spec.other_flags, spec.environ, *spec.other_environ):
            assert name in text


def test_help_lists_the_commands_without_loading_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("run", "demo", "check", "tune", "loadtest", "submit", "result", "dead"):
        assert f"\n  {command} " in text
