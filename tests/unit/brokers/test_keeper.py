"""The keeper's rounds: renew, cancel what is lost, settle what is owed, take over."""

from __future__ import annotations

import logging
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.deliveries import Delivery, Settlement
from forwarder.brokers.keeper import LeaseKeeper, round_s
from forwarder.brokers.leases import LeaseBook


class Broker:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost: list[Delivery] = []
        self.away = False
        self.refuses_sweep = False

    def receive(self, message: Any) -> Delivery:
        return Delivery(tag="1", queue="q", number=1, confirmed_s=0.0, message=message)

    def renew(self, deliveries: list[Delivery]) -> list[Delivery]:
        if self.away:
            raise ConnectionError
        self.calls.append(f"renew {len(deliveries)}")
        return self.lost

    def ack(self, delivery: Delivery) -> bool:
        if self.away:
            raise ConnectionError
        self.calls.append("ack")
        return True

    def refusal(self, error: Exception) -> str | None:
        return None

    def take_over(self) -> int:
        if self.refuses_sweep:
            raise OSError
        self.calls.append("take_over")
        return 0


class Kept:
    """A keeper over a broker in memory, and what it cancelled."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.book = LeaseBook(lambda: self.broker)  # type: ignore[arg-type, return-value]
        self.cancelled: list[Delivery] = []
        self.keeper = LeaseKeeper(book=self.book, interval_s=1.0, cancel=self.cancelled.append)

    def open(self) -> Delivery:
        return self.book.open(SimpleNamespace(headers={"id": "task-1"}))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.mark.parametrize(("visibility_s", "expected_s"), [(60, 5.0), (3, 1.0), (86400, 5.0)])
def test_two_rounds_may_fail_before_a_lease_ends(visibility_s: float, expected_s: float) -> None:
    assert round_s(visibility_s) == expected_s


def test_a_round_renews_first_so_that_nothing_of_ours_is_taken_over(kept: Kept) -> None:
    kept.open()
    kept.keeper.round()
    assert kept.broker.calls == ["renew 1", "take_over"]


def test_a_lost_task_is_cancelled_and_struck_out(kept: Kept) -> None:
    delivery = kept.open()
    kept.broker.lost = [delivery]
    kept.keeper.round()
    assert kept.cancelled == [delivery]
    assert len(kept.book) == 0


def test_a_task_that_was_settled_while_its_lease_was_renewed_is_not_cancelled(kept: Kept) -> None:
    delivery = kept.open()
    kept.broker.lost = [delivery]
    kept.book.settle(delivery, Settlement.ACK)
    kept.keeper.round()
    assert kept.cancelled == []


def test_one_task_that_can_not_be_cancelled_does_not_save_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Kept()

    def fail_first(delivery: Delivery) -> None:
        kept.cancelled.append(delivery)
        if len(kept.cancelled) == 1:
            raise RuntimeError

    keeper = LeaseKeeper(book=kept.book, interval_s=1.0, cancel=fail_first)
    kept.broker.lost = [kept.open(), kept.open()]
    keeper.round()
    assert len(kept.cancelled) == 2
    assert "cancel_failed" in caplog.text


def test_what_was_owed_is_settled_when_the_broker_is_back(kept: Kept) -> None:
    delivery = kept.open()
    kept.broker.away = True
    kept.book.settle(delivery, Settlement.ACK)
    kept.keeper.round()
    kept.broker.away = False
    kept.keeper.round()
    assert "ack" in kept.broker.calls
    assert kept.book.leased() == []


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept.broker.away = True
    kept.keeper.round()
    kept.keeper.round()
    kept.broker.away = False
    kept.keeper.round()
    assert caplog.text.count("lease_renewal_failing") == 1
    assert caplog.text.count("lease_renewal_recovered") == 1


def test_the_log_tells_a_failing_sweep_from_leases_that_are_not_renewed(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept.broker.refuses_sweep = True
    kept.keeper.round()
    kept.broker.refuses_sweep = False
    kept.keeper.round()
    assert [record.message for record in caplog.records] == [
        "take_over_failing error=OSError",
        "take_over_recovered",
    ]


def test_a_fork_waits_for_the_end_of_a_round() -> None:
    kept = Kept()
    kept.book.unforked.guard()
    in_round, go_on = threading.Event(), threading.Event()

    def renew(deliveries: list[Delivery]) -> list[Delivery]:
        in_round.set()
        go_on.wait(5.0)
        return []

    kept.broker.renew = renew  # type: ignore[method-assign]
    keeper = LeaseKeeper(book=kept.book, interval_s=0.001, cancel=kept.cancelled.append)
    keeper.start()
    in_round.wait(5.0)
    keeper.stop()
    threading.Timer(0.05, go_on.set).start()
    pid = os.fork()
    if pid == 0:  # the child: was the round over?
        os._exit(0 if go_on.is_set() else 1)
    keeper.join(5.0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_stopped_keeper_ends() -> None:
    keeper = Kept().keeper
    keeper.start()
    keeper.stop()
    keeper.join(2.0)
    assert not keeper.is_alive()


def test_who_watches_the_keeper_hears_of_each_round_and_of_failing_ones(kept: Kept) -> None:
    turns: list[bool] = []
    kept.keeper.turned = lambda: turns.append(kept.keeper.failing)
    kept.keeper.round()
    kept.broker.away = True
    kept.keeper.round()
    assert kept.keeper.failing
    kept.broker.away = False
    kept.keeper.round()
    assert not kept.keeper.failing
    assert turns == [False, False, True]
