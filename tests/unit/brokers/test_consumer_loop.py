"""The consumer in Celery's loops: what wakes them, what ends them, what they run between messages."""

from __future__ import annotations

import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import Evloop
from celery.worker.loops import asynloop, synloop

from forwarder.brokers import consumer as consumer_module
from forwarder.brokers.consumer import TURN_S
from tests.unit.brokers.consumer_scene import BYTES_MAX, Scene


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


class LoopBeat:
    def __init__(self) -> None:
        self.story: list[str] = []

    def __call__(self) -> None:
        self.story.append("turn")

    def pause(self) -> None:
        self.story.append("pause")


def test_a_slot_that_gets_free_beside_the_loop_wakes_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asleep, it would ask for the next message seconds later."""
    monkeypatch.setattr(Consumer, "register_with_event_loop", lambda *_: None)
    woken: list[Any] = []
    scene.consumer.register_with_event_loop(SimpleNamespace(call_soon=woken.append))
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert len(woken) == 1
    woken[0]()


@pytest.mark.parametrize("hub", [None, object()], ids=["gevent", "prefork"])
def test_the_loop_that_ends_however_it_ends_is_not_to_be_missed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, hub: object
) -> None:
    def lose(*args: Any) -> None:
        assert args == (1, 2)
        raise ConnectionResetError

    monkeypatch.setattr(consumer_module, "asynloop" if hub else "synloop", lose)
    scene.consumer._beat = beat = LoopBeat()
    scene.consumer.hub = hub
    with pytest.raises(ConnectionResetError):
        scene.consumer.loop(1, 2)
    assert beat.story == ["pause"]


def test_the_event_loop_turns_the_beat_with_a_timer_of_its_own(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[float, Any]] = []
    monkeypatch.setattr(Consumer, "register_with_event_loop", lambda *_: None)
    scene.consumer._beat = beat = LoopBeat()
    scene.consumer.register_with_event_loop(
        SimpleNamespace(call_repeatedly=lambda *timer: timers.append(timer))
    )
    assert timers == [(TURN_S, beat)]
    assert beat.story == ["turn"]


def test_celerys_loops_are_still_run_and_told_of_in_the_same_places() -> None:
    """``loop`` is set by Celery only where there is none, and each turn asks for what is pending."""
    assert "hasattr(self, 'loop')" in inspect.getsource(Consumer.__init__)
    assert "c.loop(*c.loop_args())" in inspect.getsource(Evloop.start)
    turn = inspect.getsource(synloop).partition("def _loop_cycle")[2]
    assert "perform_pending_operations()" in turn
    assert "obj.register_with_event_loop(hub)" in inspect.getsource(asynloop)


class Queues(dict[str, Any]):
    """What Celery knows of queues."""

    def add(self, queue: Any) -> None:
        self[queue] = queue

    def deselect(self, queues: list[str]) -> None:
        for queue in queues:
            del self[queue]


def add_queue(scene: Scene, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> Queues:
    """Let remote control add a queue, under the blocking loop; its broker may refuse it."""
    queues = Queues()

    def add_task_queue(consumer: Any, queue: str) -> None:
        assert queue in queues, "Celery would declare it in its own way"
        if error is not None:
            raise error

    consumer: Any = scene.consumer
    monkeypatch.setattr(Consumer, "add_task_queue", add_task_queue)
    consumer.app = SimpleNamespace(amqp=SimpleNamespace(queues=queues))
    consumer._make_queue = lambda name: name
    consumer.channel_errors = (LookupError,)
    consumer.hub = None
    consumer._pending_operations = deque()
    consumer.call_soon(consumer.add_task_queue, "other", None, "direct", None)
    return queues


def test_a_queue_that_remote_control_adds_is_declared_as_the_others_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = add_queue(scene, monkeypatch, None)
    scene.consumer.perform_pending_operations()
    assert list(queues) == ["other"]


def test_a_queue_that_the_broker_refuses_is_forgotten_and_ends_the_loop_whose_channel_it_closed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's blocking loop swallows the error and goes on with a closed channel."""
    queues = add_queue(scene, monkeypatch, LookupError("refused"))
    with pytest.raises(LookupError, match="refused"):
        scene.consumer.perform_pending_operations()
    assert not queues
    scene.consumer.perform_pending_operations()
