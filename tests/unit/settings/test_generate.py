"""The files made from the table are those in the repository, and they can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.settings import resolve
from forwarder.settings.generate import env_example, main, settings_page, stale
from forwarder.settings.table import SPECS

ROOT = Path(__file__).parents[3]


def test_the_generated_files_are_up_to_date() -> None:
    assert stale(ROOT) == [], "run `python -m forwarder.settings.generate`"


def test_every_setting_is_in_both_files() -> None:
    for spec in SPECS:
        assert f"#{spec.environ}=" in env_example()
        assert f"`{spec.flag}`" in settings_page()
        assert f"`{spec.environ}`" in settings_page()


def test_the_example_with_every_line_in_effect_is_the_defaults() -> None:
    lines = [line.removeprefix("#") for line in env_example().splitlines()]
    environ = dict(line.split("=", 1) for line in lines if line.split("=")[0].isupper() and "=" in line)
    assert len(environ) == len(SPECS)
    assert resolve({}, environ, {}).settings == resolve({}, {}, {}).settings


def test_checking_tells_that_a_file_is_out_of_date_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert main() == 1
    assert ".env.example is out of date" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["generate"])
    assert main() == 0
    assert stale(tmp_path) == []
