"""``check`` and the staging folder: each thing that would make large bodies fail is a warning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forwarder.cli import staging_probe
from forwarder.cli.findings import Caution
from forwarder.cli.staging_probe import ask_staging
from forwarder.settings.model import Settings


def settings(folder: Path, *, bytes_max: int = 1024) -> Settings:
    return Settings(stage_folder=str(folder), stage_bytes_max=bytes_max, destination_bytes_max=0)


def mounted(tmp_path: Path, kind: str) -> Path:
    """Return a table of mounts in which the folder's device has this type."""
    device = tmp_path.stat().st_dev
    table = tmp_path / "mounts"
    table.write_text(
        f"22 1 0:1 / /proc rw - proc proc rw\n"
        f"30 1 {os.major(device)}:{os.minor(device)} / {tmp_path} rw,relatime shared:1 - {kind} disk rw\n"
    )
    return table


def caution(found: str | Caution) -> str:
    assert isinstance(found, Caution), found
    assert found.remedy
    return found.detail


def test_a_folder_that_takes_files_is_well_and_left_empty(tmp_path: Path) -> None:
    found = ask_staging(settings(tmp_path), mounts=mounted(tmp_path, "ext4"))

    assert isinstance(found, str)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_folder_that_can_not_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "no file can be made" in caution(ask_staging(settings(tmp_path / "file")))


def test_a_folder_in_memory_is_a_warning(tmp_path: Path) -> None:
    found = ask_staging(settings(tmp_path), mounts=mounted(tmp_path, "tmpfs"))

    assert "in memory" in caution(found)


def test_a_disk_smaller_than_the_bound_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging_probe, "_free_bytes", lambda folder: 1023)

    assert "free" in caution(ask_staging(settings(tmp_path), mounts=mounted(tmp_path, "ext4")))


def test_where_mounts_are_not_told_the_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert isinstance(ask_staging(settings(tmp_path), mounts=tmp_path / "none"), str)
