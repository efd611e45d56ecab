"""Commands and signals: one that Python swallowed ends the run all the same."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forwarder.cli.interruption import SIGNALS, Interruption


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interruption_that_was_swallowed_ends_the_run_where_it_goes_on() -> None:
    interruption = Interruption()
    interruption.go_on()
    with contextlib.suppress(KeyboardInterrupt):  # as in a destructor
        interruption.tell(signal.SIGINT, None)

    with pytest.raises(KeyboardInterrupt):
        interruption.go_on()


def test_an_interruption_while_a_class_is_made_is_no_end_by_the_signal(tmp_path: Path) -> None:
    """Python takes KeyboardInterrupt itself for unhandled there."""
    (tmp_path / "program.py").write_text(
        "import contextlib, signal, sys\n"
        "from forwarder.cli.interruption import Interruption\n"
        "tell = Interruption().tell\n"
        "with contextlib.suppress(KeyboardInterrupt):\n"
        "    exec('tell(signal.SIGINT, None)')\n"
        "sys.exit(1)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    assert subprocess.run([sys.executable, "-m", "program"], env=env, check=False).returncode == 1
