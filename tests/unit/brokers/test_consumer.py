"""The consumer around the lease book: what is refused, what is handed back, what is cancelled."""

from __future__ import annotations

import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import Evloop
from celery.worker.loops import asynloop, synloop

from forwarder.brokers import consumer as consumer_module
from forwarder.brokers.consumer import REFUSAL_RETRY_S, TURN_S, ForwarderConsumer
from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.forwarding.errors import ForwarderError
from forwarder.forwarding.ports import PARDONS_MAX
from forwarder.scaling.admission import Admission

MAX_DELIVERIES = 3
TOO_MANY = MAX_DELIVERIES + PARDONS_MAX + 2
BYTES_MAX = 100


class Broker:
    def __init__(self) -> None:
        self.number = 1
        self.dead: list[Death] = []
        self.handed_back: list[Delivery] = []
        self.recounted = False
        self.again = False
        self.requeued = 0

    def recount(self, message: Any) -> bool:
        return self.recounted

    def receive(self, message: Any) -> Delivery:
        return Delivery(
            tag="1",
            queue="q",
            number=self.number,
            confirmed_s=0.0,
            message=message,
            redelivered=self.again,
        )

    def requeue(self, delivery: Delivery) -> bool:
        self.requeued += 1
        return True

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        self.dead.append(death)
        return True

    def hand_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        self.handed_back += deliveries
        return []

    def disconnected(self, deliveries: list[Delivery]) -> list[Delivery]:
        return deliveries


class Backend:
    def __init__(self) -> None:
        self.down = False
        self.outcomes: dict[str, object] = {}
        self.stored: list[tuple[str, str]] = []

    def find(self, task_id: str) -> object:
        if self.down:
            raise Reject
        return self.outcomes.get(task_id)

    def store_result(self, task_id: str, error: ForwarderError, state: str) -> None:
        if self.down:
            raise ConnectionError
        assert state == states.FAILURE
        self.stored.append((task_id, error.code))


class Request:
    def __init__(self, *, begun: bool) -> None:
        self.time_start = 1.0 if begun else None
        self.abandoned = False

    def abandon(self, pool: Any) -> None:
        self.abandoned = True


class Scene:
    """A consumer without Celery's worker around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = Broker()
        self.backend = Backend()
        self.handled: list[Any] = []
        self.super_calls: list[str] = []
        self.handle: Any = self.handled.append
        monkeypatch.setattr(Consumer, "create_task_handler", lambda *_: self.handle)
        for name in ("on_close", "on_connection_error_after_connected", "shutdown"):
            monkeypatch.setattr(Consumer, name, lambda *_, name=name: self.super_calls.append(name))
        consumer = object.__new__(ForwarderConsumer)
        consumer._book = self.book = LeaseBook(lambda: self.broker)  # type: ignore[arg-type, return-value]
        self.refused: list[str] = []
        self.book.refused = lambda delivery, code: self.refused.append(code)
        consumer._max_deliveries = MAX_DELIVERIES
        consumer._message_bytes_max = BYTES_MAX
        consumer._store = self.backend
        consumer.in_background = lambda work: work()
        consumer.pool = None
        consumer.connection_errors = (ConnectionResetError,)
        self.consumer = consumer

    def receive(self, body: bytes = b"{}", *, number: int = 1, task_id: str | None = "a") -> Any:
        self.broker.number = number
        headers = {"id": task_id, "task": "no.such"}
        message = SimpleNamespace(body=body, properties={}, headers=headers, delivery_info={})
        self.consumer.create_task_handler()(message)
        return message

    def hold(self, *, begun: bool) -> Delivery:
        delivery = self.book.open(SimpleNamespace(headers={"id": "a"}))
        delivery.request = Request(begun=begun)
        return delivery


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_message_enters_the_book_before_it_is_handled(scene: Scene) -> None:
    message = scene.receive()
    assert scene.handled == [message]
    assert scene.book.held() == [message.delivery]


def test_a_message_that_was_published_again_to_be_counted_is_not_run(scene: Scene) -> None:
    scene.broker.recounted = True
    scene.receive()
    assert scene.handled == []
    assert len(scene.book) == 0


def test_a_message_over_the_limit_is_put_aside_with_its_reason_and_a_result(scene: Scene) -> None:
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert scene.handled == []
    assert scene.backend.stored == [("a", "invalid_message")]
    assert [(death.code, death.queue) for death in scene.broker.dead] == [("invalid_message", "q")]
    assert "101 bytes" in scene.broker.dead[0].error


@pytest.mark.parametrize("number", [1, MAX_DELIVERIES, TOO_MANY - 1])
def test_up_to_one_delivery_past_what_can_be_pardoned_the_pool_decides(scene: Scene, number: int) -> None:
    scene.receive(number=number)
    assert len(scene.handled) == 1


def test_a_task_that_failed_even_to_be_put_aside_never_reaches_the_pool_again(scene: Scene) -> None:
    scene.receive(number=TOO_MANY)
    assert scene.handled == []
    assert scene.backend.stored == [("a", "dead_lettered")]
    assert scene.broker.dead[0].deliveries == TOO_MANY


def test_whatever_goes_wrong_with_one_message_ends_with_it(scene: Scene) -> None:
    def fail(message: Any) -> None:
        raise KeyError("secret")

    scene.handle = fail
    scene.receive()
    assert scene.broker.dead[0].code == "invalid_message"
    assert "secret" not in scene.broker.dead[0].error


def test_a_missing_header_is_not_taken_for_a_lost_connection(scene: Scene) -> None:
    def fail(message: Any) -> None:
        raise KeyError("id")

    scene.consumer.connection_errors = (ConnectionResetError, KeyError)
    scene.handle = fail
    scene.receive()
    assert scene.broker.dead[0].code == "invalid_message"


def test_a_lost_connection_is_not_the_message_s_fault(scene: Scene) -> None:
    def fail(message: Any) -> None:
        raise ConnectionResetError

    scene.handle = fail
    with pytest.raises(ConnectionResetError):
        scene.receive()
    assert scene.broker.dead == []


def test_a_message_without_an_id_is_put_aside_without_a_result(scene: Scene) -> None:
    scene.receive(task_id=None)
    assert scene.backend.stored == []
    assert scene.broker.dead[0].code == "invalid_message"


def test_a_message_is_refused_once(scene: Scene) -> None:
    def refuse_and_fail(message: Any) -> None:
        scene.consumer.on_unknown_message(None, message)
        raise KeyError

    scene.handle = refuse_and_fail
    scene.receive()
    assert len(scene.broker.dead) == 1


@pytest.mark.parametrize("task_id", ["x" * 201, "", 7, "\ud800"])
def test_an_id_that_no_result_can_be_stored_under_is_refused(scene: Scene, task_id: Any) -> None:
    scene.receive(task_id=task_id)
    assert scene.handled == []
    assert scene.backend.stored == []
    assert scene.broker.dead[0].code == "invalid_message"


def test_a_dead_task_that_has_an_outcome_keeps_it(scene: Scene) -> None:
    scene.backend.outcomes["a"] = "an outcome"
    scene.receive(number=TOO_MANY)
    assert scene.backend.stored == []
    assert scene.broker.dead[0].code == "dead_lettered"


def test_what_celery_gave_up_while_the_store_was_away_comes_again_counted(scene: Scene) -> None:
    def give_up(message: Any) -> None:
        raise Reject

    scene.handle = give_up
    scene.receive()
    assert scene.broker.requeued == 1


@pytest.mark.parametrize(
    ("number", "again", "expected"), [(1, False, False), (1, True, True), (2, False, True)]
)
def test_the_task_is_told_of_earlier_deliveries_also_of_those_that_dont_count(
    scene: Scene, number: int, again: bool, expected: bool
) -> None:
    scene.broker.again = again
    assert scene.receive(number=number).delivery_info["redelivered"] is expected


def test_an_unknown_task_is_put_aside_under_its_own_code(scene: Scene) -> None:
    message = scene.receive()
    scene.consumer.on_unknown_task(None, message, KeyError("no.such"))
    assert scene.backend.stored == [("a", "unknown_task")]
    assert "'no.such'" in scene.broker.dead[0].error


def test_while_the_store_is_away_a_refused_message_keeps_its_lease(scene: Scene) -> None:
    waits: list[float] = []

    def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        assert scene.broker.dead == []
        assert len(scene.book) == 1
        scene.backend.down = len(waits) < 3

    scene.consumer.sleep = sleep
    scene.backend.down = True
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert waits == [REFUSAL_RETRY_S] * 3
    assert scene.refused == ["invalid_message"], "told once, for the numbers"
    assert scene.backend.stored == [("a", "invalid_message")]
    assert len(scene.broker.dead) == 1
    assert len(scene.book) == 0


def test_a_refused_message_that_is_handed_back_meanwhile_is_left_alone(scene: Scene) -> None:
    scene.consumer.sleep = lambda _: scene.book.hand_back(scene.book.held())
    scene.backend.down = True
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert len(scene.broker.handed_back) == 1
    assert scene.broker.dead == []
    assert scene.refused == []


@pytest.mark.parametrize("down", [True, False])
def test_without_a_thread_a_message_is_refused_here_or_goes_back(scene: Scene, down: bool) -> None:
    def no_thread(work: object) -> None:
        raise RuntimeError("can't start new thread")

    scene.consumer.in_background = no_thread
    scene.backend.down = down
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert (len(scene.broker.handed_back), len(scene.broker.dead)) == ((1, 0) if down else (0, 1))
    assert len(scene.book) == 0


def test_a_body_that_kombu_could_not_unpack_is_refused_before_it_was_handed_over(scene: Scene) -> None:
    message = SimpleNamespace(body=b"", properties={}, headers={"id": "a"}, delivery_info={})
    scene.consumer.on_decode_error(message, ValueError("secret"))
    assert scene.backend.stored == [("a", "invalid_message")]
    assert len(scene.broker.dead) == 1


@pytest.mark.parametrize(
    "odd", [{"body": 5}, {"body": None}, {"properties": {"item_bytes": "abc"}}, {"headers": 5}]
)
def test_no_shape_of_a_message_ends_the_worker(scene: Scene, odd: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"body": b"{}", "properties": {}, "headers": {"id": "a"}, "delivery_info": {}}
    scene.consumer.create_task_handler()(SimpleNamespace(**(shape | odd)))
    assert len(scene.handled) + len(scene.broker.dead) == 1


def test_closing_hands_back_only_what_no_slot_has_begun(scene: Scene) -> None:
    running, waiting = scene.hold(begun=True), scene.hold(begun=False)
    scene.consumer.on_close()
    assert scene.broker.handed_back == [waiting]
    assert waiting.request.abandoned, "it must not start after its message went back"
    assert not running.request.abandoned
    assert scene.super_calls == ["on_close"]


def test_what_the_broker_gives_to_others_is_cancelled_before_reconnecting(scene: Scene) -> None:
    running = scene.hold(begun=True)
    scene.consumer.on_connection_error_after_connected(ConnectionResetError())
    assert running.request.abandoned
    assert len(scene.book) == 0
    assert scene.broker.handed_back == []
    assert scene.super_calls == ["on_connection_error_after_connected"]


def test_before_the_connection_closes_all_that_is_held_is_handed_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting = scene.hold(begun=True), scene.hold(begun=False)
    abandoned: list[bool] = []

    def hand_back(deliveries: list[Delivery]) -> list[Delivery]:
        abandoned.extend(delivery.request.abandoned for delivery in deliveries)
        assert scene.super_calls == [], "with the connection RabbitMQ's leases end"
        scene.broker.handed_back += deliveries
        return []

    monkeypatch.setattr(scene.broker, "hand_back", hand_back)
    scene.consumer.shutdown()
    assert scene.broker.handed_back == [running, waiting]
    assert abandoned == [True, True], "no copy may run on after its message went back"
    assert scene.super_calls == ["shutdown"]
    assert len(scene.book) == 0


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


class PushedTo:
    """Stands for kombu's consumer: notes its prefetch counts."""

    def __init__(self) -> None:
        self.queues = [SimpleNamespace(name="q")]
        self.tag_prefix = ""
        self.calls: list[Any] = []

    def qos(self, *, prefetch_count: int) -> None:
        self.calls.append(prefetch_count)

    def cancel(self) -> None:
        self.calls.append("cancel")

    def consume(self) -> None:
        self.calls.append("consume")


def pushed(scene: Scene) -> PushedTo:
    """Make the scene's broker one that pushes; what is to run in the loop runs at once."""
    consumer: Any = scene.consumer
    consumer.pushed = True
    consumer.qos = SimpleNamespace(value=8)
    consumer.task_consumer = PushedTo()
    consumer.call_soon = lambda work: work()
    scene.book.admission = Admission(slots_max=8, bytes_max=400)
    return consumer.task_consumer  # type: ignore[no-any-return]


def test_a_broker_that_pushes_is_told_less_when_messages_pass_the_budget(scene: Scene) -> None:
    kombu = pushed(scene)
    handle = scene.consumer.create_task_handler()

    def receive(size: int) -> None:
        headers = {"id": "a", "task": "t"}
        info = {"consumer_tag": f"{kombu.tag_prefix}1"}
        handle(SimpleNamespace(body=b"x" * size, properties={}, headers=headers, delivery_info=info))

    for size in (100, 100, 100, 100):
        receive(size)
    assert kombu.calls == [4]
    receive(1)
    assert kombu.calls == [4, "cancel"]
    scene.book.hand_back(scene.book.held())
    scene.book.ticked()
    assert kombu.calls == [4, "cancel", 4, "consume"]


def test_a_worker_that_stops_asks_for_nothing_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    kombu = pushed(scene)
    scene.receive()
    monkeypatch.setattr(state, "should_stop", 0)
    scene.book.admission.slots = 1  # type: ignore[attr-defined]
    scene.book.ticked()
    assert kombu.calls == [4]


def test_a_worker_that_closes_for_its_stop_cancels_every_consumer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    kombu = pushed(scene)
    scene.receive()
    monkeypatch.setattr(state, "should_stop", 0)
    scene.consumer.on_close()
    assert kombu.calls == [4, "cancel"]


def test_brokers_that_are_asked_for_messages_keep_celerys_prefetch_count(scene: Scene) -> None:
    kombu = pushed(scene)
    scene.consumer.pushed = False
    scene.receive(b"x" * 100)
    assert kombu.calls == []


class LoopBeat:
    def __init__(self) -> None:
        self.story: list[str] = []

    def __call__(self) -> None:
        self.story.append("turn")

    def pause(self) -> None:
        self.story.append("pause")


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
