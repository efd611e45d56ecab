"""Configuration files in three formats, and what is wrong with those that can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.settings import SettingsError
from forwarder.settings.files import read_mapping


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.yaml", "concurrency: 8\nqueues: [a, b]\n"),
        ("f.yml", "{concurrency: 8, queues: [a, b]}"),
        ("f.toml", 'concurrency = 8\nqueues = ["a", "b"]\n'),
        ("f.json", '{"concurrency": 8, "queues": ["a", "b"]}'),
        ("f", "concurrency: 8\nqueues: [a, b]\n"),
    ],
)
def test_yaml_toml_and_json_hold_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_mapping(tmp_path / name) == {"concurrency": 8, "queues": ["a", "b"]}


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "f.yaml") == {}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("f.yaml", b"callback_secret: [hunter2", "not YAML in line 1"),
        ("f.yaml", b"a: !!python/object/apply:os.system [hunter2]", "not YAML in line 1"),
        ("f.toml", b"callback_secret = hunter2", "not TOML"),
        ("f.json", b'{"callback_secret": hunter2}', "not JSON"),
        ("f.yaml", b"\xff\xfe\x00hunter2", "not YAML"),
        ("f.yaml", b"- hunter2", "no mapping at its root"),
        pytest.param("f.json", b"[" * 100_000, "not JSON", id="deep"),
    ],
)
def test_what_is_wrong_is_said_without_quoting_the_file(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        read_mapping(tmp_path / name)
    assert reason in str(refused.value)
    assert "--config" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_mapping(tmp_path / "absent.yaml")


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="directory"):
        read_mapping(tmp_path)
