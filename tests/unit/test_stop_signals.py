"""A process that has stopped: no further signal changes what it ends with."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from forwarder.stop_signals import STOP_SIGNALS

#: Sends itself a signal while Python clears its modules, which is after it gave up the handlers.
PROGRAM = """
    import os, signal
    from forwarder.stop_signals import STOP_SIGNALS, ignore_stop_signals

    class Late:
        def __init__(self):
            self.kill, self.pid = os.kill, os.getpid()

        def __del__(self):
            self.kill(self.pid, {number})

    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    late = Late()
    {ignore}
"""


def ended(number: int, *, ignore: str) -> int:
    """Run the program and return its exit code."""
    program = textwrap.dedent(PROGRAM).format(number=number, ignore=ignore)
    return subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode


@pytest.mark.parametrize("number", [*map(int, STOP_SIGNALS)])
def test_a_signal_that_comes_as_the_process_ends_does_not_change_its_exit_code(number: int) -> None:
    assert ended(number, ignore="ignore_stop_signals()") == 0


def test_python_itself_would_end_with_the_signal() -> None:
    assert ended(signal.SIGTERM, ignore="") == -signal.SIGTERM
