"""The demo and signals: one that Python swallowed ends it all the same."""

from __future__ import annotations

import contextlib
import signal

import pytest

from forwarder.cli.demo import Interruption


def test_an_interruption_that_was_swallowed_ends_the_run_where_it_goes_on() -> None:
    interruption = Interruption()
    interruption.go_on()
    with contextlib.suppress(KeyboardInterrupt):  # as in a destructor
        interruption.tell(signal.SIGINT, None)

    with pytest.raises(KeyboardInterrupt):
        interruption.go_on()
