"""When the receiver polls, and for how many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from forwarder.brokers.sqs.messages import RawMessage
from forwarder.brokers.sqs.receiver import GATHER_S, Receiver
from tests.unit.brokers.sqs.fake import Clock, FakeSqs, make_leases, raw_message


class Scene:
    """A receiver whose world moves only when it waits: a script of (held, arrivals) plays along."""

    def __init__(self, *, most: int) -> None:
        self.clock = Clock()
        self.sqs = FakeSqs()
        self.leases = make_leases(self.sqs, self.clock)
        self.most = most
        self.held = 0
        self.settle_each_s: float | None = None
        self.polls_left = 1
        self.waits: list[float] = []
        self.arrived: list[RawMessage] = []
        self.answered: list[bool] = []
        self.receiver = Receiver(
            leases=self.leases,
            slots=lambda: (self.most, self.held),
            arrived=self._arrive,
            wanted=lambda: len(self.sqs.named("receive_message")) < self.polls_left,
            answered=self.answered.append,
            clock=self.clock,
            uniform=lambda low, high: high,
        )
        self.leases.changed = self  # type: ignore[assignment]

    def _arrive(self, messages: Sequence[RawMessage]) -> None:
        self.arrived += messages

    def clear(self) -> None:
        pass

    def wait(self, timeout_s: float) -> None:
        """Stand for the event: a slot falls free after ``settle_each_s``, or the time is over."""
        self.waits.append(timeout_s)
        if self.settle_each_s is not None and self.settle_each_s < timeout_s:
            self.clock.now_s += self.settle_each_s
            self.held -= 1
        else:
            self.clock.now_s += timeout_s

    def poll(self, *, loaded: bool) -> int:
        """Run one poll and return for how many it asked."""
        self.receiver._loaded = loaded
        self.receiver.run()
        return int(self.sqs.named("receive_message")[-1]["MaxNumberOfMessages"])


def test_an_idle_worker_polls_at_once_for_every_slot_up_to_ten() -> None:
    assert Scene(most=4).poll(loaded=False) == 4
    assert Scene(most=40).poll(loaded=False) == 10
    scene = Scene(most=4)
    scene.held = 3
    assert scene.poll(loaded=False) == 1
    assert scene.waits == []


def test_under_load_it_waits_until_ten_slots_are_free() -> None:
    scene = Scene(most=20)
    scene.held = 19
    scene.settle_each_s = GATHER_S / 20
    assert scene.poll(loaded=True) == 10
    assert scene.clock.now_s == pytest.approx(1000 + 9 * GATHER_S / 20)


def test_under_load_it_does_not_wait_longer_than_the_gathering_time() -> None:
    scene = Scene(most=20)
    scene.held = 19
    scene.settle_each_s = GATHER_S / 2.5
    assert scene.poll(loaded=True) == 3
    assert scene.clock.now_s == pytest.approx(1000 + GATHER_S)


def test_a_small_worker_waits_for_all_its_slots() -> None:
    scene = Scene(most=2)
    scene.held = 1
    scene.settle_each_s = GATHER_S / 4
    assert scene.poll(loaded=True) == 2


def test_a_full_worker_does_not_poll() -> None:
    scene = Scene(most=2)
    scene.held = 2
    scene.settle_each_s = 0.5
    assert scene.poll(loaded=False) == 1
    assert scene.waits == [1.0]


def test_what_was_fetched_and_not_yet_opened_takes_a_slot() -> None:
    scene = Scene(most=3)
    scene.polls_left = 2
    scene.sqs.inbox = [raw_message("a"), raw_message("b")]
    assert scene.poll(loaded=False) == 1
    assert [call["MaxNumberOfMessages"] for call in scene.sqs.named("receive_message")] == [3, 1]
    assert len(scene.arrived) == 2


def test_a_failing_sqs_is_asked_again_with_a_growing_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(most=2)
    scene.polls_left = 4
    scene.sqs.fails["receive_message"] = EndpointConnectionError(endpoint_url="https://sqs")
    pauses: list[float] = []
    monkeypatch.setattr(scene.receiver._stopped, "wait", _note(pauses))
    scene.poll(loaded=False)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert scene.answered == [False] * 4


def test_every_answer_is_told_also_one_without_a_message() -> None:
    scene = Scene(most=2)
    scene.polls_left = 2
    scene.poll(loaded=False)
    assert scene.answered == [True, True]


def test_a_stopped_receiver_polls_no_more_and_hands_back_what_the_last_poll_brings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(most=2)
    scene.polls_left = 99
    scene.sqs.inbox = [raw_message(body="late")]
    monkeypatch.setattr(scene, "set", scene.receiver._stopped.is_set, raising=False)
    original = scene.sqs.receive_message

    def stop_meanwhile(**arguments: Any) -> Any:
        scene.receiver.stop()
        return original(**arguments)

    monkeypatch.setattr(scene.sqs, "receive_message", stop_meanwhile)
    scene.receiver.run()
    assert scene.arrived == []
    assert [copy["MessageBody"] for copy in scene.sqs.queues["q"]] == ["late"]
    assert len(scene.sqs.named("receive_message")) == 1


def _note(pauses: list[float]) -> Callable[[float], bool]:
    def wait(timeout_s: float) -> bool:
        pauses.append(timeout_s)
        return False

    return wait
