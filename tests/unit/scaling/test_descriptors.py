"""How many descriptors the settings need, and the limit that is raised."""

from __future__ import annotations

import multiprocessing
import resource
from typing import Any

import pytest

from forwarder.scaling.descriptors import Allowed, allowed, need, raise_soft_limit
from forwarder.settings.model import Settings


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        (Settings(pool="gevent", concurrency=100), 60 + 100 * 6),
        (Settings(pool="gevent", autoscale=(200, 2)), 60 + 200 * 6),
        (Settings(pool="gevent", concurrency=100, input_schemes=()), 60 + 100 * 5),
        (Settings(pool="gevent", concurrency=100, hooks=("callback",)), 60 + 100 * 7),
        (Settings(pool="gevent", concurrency=100, hooks=("logging",)), 60 + 100 * 6 + 50),
        (Settings(concurrency=100), 40 + 100 * 7),
    ],
)
def test_the_sum_for_these_settings(settings: Settings, number: int) -> None:
    assert need(settings).number == number


def test_the_arithmetic_names_what_each_slot_holds() -> None:
    assert need(Settings(pool="gevent", concurrency=8, hooks=("callback",))).arithmetic == (
        "40 + 20 spare + 8 slots x (1 inference + 1 results + 1 input or destination"
        " + 2 answer's file, written and read + 1 input's file + 1 callback)"
    )


def test_a_limit_that_is_none_allows_any_number() -> None:
    assert Allowed(soft=64, hard=resource.RLIM_INFINITY).suffices(10**6)
    assert Allowed(soft=64, hard=500).suffices(500)
    assert not Allowed(soft=64, hard=500).suffices(501)


def _raised(answer: Any) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    before, after = allowed(), raise_soft_limit()
    answer.send((before.soft, after.soft, after.hard))


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_raised, args=(sending,))
    child.start()
    child.join(10)
    before, after, hard = receiving.recv()
    assert before == 64
    assert after == hard
