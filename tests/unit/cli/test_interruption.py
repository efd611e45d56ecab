"""Commands and signals: one that Python swallowed ends the run all the same."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

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
