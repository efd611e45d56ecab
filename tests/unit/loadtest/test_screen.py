"""What a run shows: a bar where somebody watches, a few lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from forwarder.loadtest.figures import Sample
from forwarder.loadtest.screen import LINES, Screen, words

EVENTS = {"grow": 2, "hold": 0, "shrink": 0, "block": 1, "kills": 0, "pressure": 0}
SEEN = Sample(at_s=1.0, sent=9, done=5, processes=3, rss_mb=150.4, unique_mb=80.0, in_flight=4, events=EVENTS)


def test_the_workers_state_is_told_in_one_line() -> None:
    assert words(SEEN) == "2 children  RSS 150 MB, unique 80 MB  4 in flight  grow 2  block 1"


def test_nothing_is_made_up_of_a_worker_that_can_not_be_seen() -> None:
    assert words(Sample(at_s=1.0, sent=9, done=5)) == ""


def test_a_worker_that_is_gone_is_told() -> None:
    assert words(Sample(at_s=1.0, sent=9, done=5, gone=True)) == "the worker is gone"


def test_where_nobody_watches_a_run_is_a_few_lines_however_many_samples_there_are() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output))
    with screen.following(1000):
        for done in range(1001):
            screen.update(Sample(at_s=float(done), sent=1000, done=done))
    lines = output.getvalue().splitlines()
    assert len(lines) == LINES + 1
    assert lines[-1].endswith("1000/1000")


def test_a_narrow_terminal_shows_the_count_and_the_time_and_cuts_the_state() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=True, width=80))
    with screen.following(1000):
        screen.update(SEEN)
    shown = output.getvalue()
    assert "5/1000" in shown
    assert "0:00:0" in shown
    assert "2 children  4 in flight" in shown
    assert "RSS" not in output.getvalue()


def test_on_a_terminal_there_is_a_bar_with_the_state_beside_it() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=True, width=160))
    with screen.following(10):
        screen.update(SEEN)
    assert "5/10" in output.getvalue()
    assert "2 children" in output.getvalue()
