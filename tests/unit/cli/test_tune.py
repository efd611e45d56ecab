"""What ``tune`` says around its measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.cli.tune import loading


@pytest.mark.parametrize(
    ("path", "commands"),
    [
        ("tuned.env", "set -a; . ./tuned.env; set +a"),
        ("a b/tuned.env", "set -a; . './a b/tuned.env'; set +a"),
        ("/etc/tuned.env", "set -a; . /etc/tuned.env; set +a"),
    ],
)
def test_an_env_file_is_written_with_the_commands_that_load_it(path: str, commands: str) -> None:
    assert loading(Path(path)) == commands
