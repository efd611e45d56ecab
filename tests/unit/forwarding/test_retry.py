"""The retry decision, by table and by property."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.forwarding.errors import (
    Expired,
    ForwarderError,
    InferenceBusy,
    InferenceTimeout,
    InferenceUnreachable,
    InvalidPayload,
    ResponseTooLarge,
)
from forwarder.forwarding.retry import BACKOFF, Action, Decision, RetryPolicy

POLICY = RetryPolicy(slot_budget_s=60.0, max_retries=3)


def most(low: float, high: float) -> float:
    return high


def decide(error: ForwarderError, *, attempt: int = 0, waited_s: float = 0.0, retries: int = 0) -> Decision:
    return POLICY.decide(error, attempt=attempt, waited_s=waited_s, retries=retries, uniform=most)


@pytest.mark.parametrize(
    "error", [InvalidPayload("no"), Expired("late"), InferenceTimeout("slow"), ResponseTooLarge("big")]
)
def test_only_busy_and_unreachable_are_tried_again(error: ForwarderError) -> None:
    assert decide(error).action is Action.FAIL


@pytest.mark.parametrize(
    ("attempt", "wait_s"),
    [(0, 0.25), (1, 0.5), (2, 1.0), (5, 8.0), (6, BACKOFF.max_s), (5000, BACKOFF.max_s)],
)
def test_waits_grow_and_are_bounded(attempt: int, wait_s: float) -> None:
    assert decide(InferenceUnreachable("gone"), attempt=attempt) == Decision(Action.WAIT, wait_s)


def test_retry_after_comes_before_the_jitter() -> None:
    assert decide(InferenceBusy("busy", retry_after_s=7.0)) == Decision(Action.WAIT, 7.25)


def test_a_task_goes_back_only_when_its_slot_budget_is_used_up() -> None:
    assert decide(InferenceBusy("busy", retry_after_s=120.0)) == Decision(Action.GO_BACK, 60.0)
    assert decide(InferenceUnreachable("gone"), attempt=9, waited_s=50.0) == Decision(Action.GO_BACK, 10.0)


def test_a_task_fails_when_it_went_back_often_enough() -> None:
    assert decide(InferenceUnreachable("gone"), waited_s=60.0, retries=2).action is Action.GO_BACK
    assert decide(InferenceUnreachable("gone"), waited_s=60.0, retries=3) == Decision(Action.FAIL)


@given(retry_after_s=st.none() | st.floats(0, 3600), seed=st.integers(0, 2**32))
def test_one_delivery_never_waits_longer_than_its_budget_and_always_ends(
    retry_after_s: float | None, seed: int
) -> None:
    draw = random.Random(seed).uniform
    waited_s, attempt = 0.0, 0
    while True:
        decision = POLICY.decide(
            InferenceBusy("busy", retry_after_s=retry_after_s),
            attempt=attempt,
            waited_s=waited_s,
            retries=0,
            uniform=draw,
        )
        waited_s += decision.wait_s
        assert waited_s <= 60.0 + 1e-6
        if decision.action is not Action.WAIT:
            assert decision.action is Action.GO_BACK
            assert waited_s == pytest.approx(60.0)
            return
        attempt += 1
