"""Settings that are on or off, as flags."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.settings import Resolved


@click.command(cls=SettingsCommand)
@with_settings
def show(resolved: Resolved) -> int:
    click.echo(f"{resolved.settings.auto} {resolved.settings.concurrency}")
    return 0


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        ("--auto", "True 4"),
        ("--auto --concurrency 3", "True 3"),
        ("--concurrency 3 --auto true", "True 3"),
        ("--auto=false", "False 4"),
        ("--auto false --concurrency 3", "False 3"),
    ],
)
def test_a_flag_alone_turns_its_setting_on(argv: str, printed: str) -> None:
    assert CliRunner(env={"FORWARDER_AUTO": ""}).invoke(show, argv.split()).output.strip() == printed
