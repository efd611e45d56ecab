"""Waiting for a store that is away: bounded, jittered, told once."""

from __future__ import annotations

import pytest

from forwarder.results.patience import Patience


class Outage:
    """A clock, and a step that fails until some moment, each try taking ``try_s``."""

    def __init__(self, until: float, try_s: float = 0.0) -> None:
        self.now = 0.0
        self.until = until
        self.try_s = try_s
        self.tries = 0

    def step(self) -> str:
        self.tries += 1
        self.now += self.try_s
        if self.now < self.until:
            raise ConnectionError("store.example.com refused hunter2")
        return "done"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def insist(self, bound_s: float) -> str:
        patience = Patience(
            bound_s=bound_s,
            store="redis://store:6379/1",
            sleep=self.sleep,
            monotonic=lambda: self.now,
            uniform=lambda low, high: high,
        )
        return patience.insist(self.step, task_id="t1")


def test_a_store_that_works_is_asked_once_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(until=0.0)
    with caplog.at_level("DEBUG"):
        assert outage.insist(300.0) == "done"
    assert outage.tries == 1
    assert caplog.records == []


def test_an_outage_is_waited_out_and_logged_when_it_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(until=60.0)
    assert outage.insist(300.0) == "done"
    assert outage.now <= 65.0, "noticed within five seconds"
    assert [record.message.split(" ")[0] for record in caplog.records] == [
        "result_store_failing",
        "result_store_recovered",
    ]
    assert "store=redis://store:6379/1 error=ConnectionError" in caplog.text
    assert "hunter2" not in caplog.text


def test_past_the_bound_the_last_error_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(until=1000.0)
    with pytest.raises(ConnectionError):
        outage.insist(30.0)
    assert 25.0 <= outage.now <= 30.0
    given_up = "result_store_given_up task_id=t1 store=redis://store:6379/1 error=ConnectionError"
    assert given_up in caplog.text


def test_a_frozen_store_holds_a_slot_for_no_longer_than_the_bound_and_one_try() -> None:
    outage = Outage(until=1000.0, try_s=10.0)
    with pytest.raises(ConnectionError):
        outage.insist(30.0)
    assert outage.now <= 40.0


def test_without_a_bound_there_is_one_try() -> None:
    outage = Outage(until=1.0)
    with pytest.raises(ConnectionError):
        outage.insist(0.0)
    assert outage.tries == 1
    assert outage.now == 0.0


def test_what_ends_the_greenlet_is_not_waited_for() -> None:
    class Killed(BaseException):
        pass

    def step() -> None:
        raise Killed

    with pytest.raises(Killed):
        Patience(bound_s=300.0).insist(step, task_id="t1")
