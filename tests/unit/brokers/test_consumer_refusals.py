"""Messages that the consumer refuses: why, with which result, and where they go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.consumer import REFUSAL_RETRY_S
from tests.unit.brokers.consumer_scene import BYTES_MAX, MAX_DELIVERIES, TOO_MANY, Scene


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


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
    assert scene.concluded == ["invalid_message"], "told once, for the numbers"
    assert scene.backend.stored == [("a", "invalid_message")]
    assert len(scene.broker.dead) == 1
    assert len(scene.book) == 0


def test_a_refused_message_that_is_handed_back_meanwhile_is_left_alone(scene: Scene) -> None:
    scene.consumer.sleep = lambda _: scene.book.hand_back(scene.book.held())
    scene.backend.down = True
    scene.receive(b"x" * (BYTES_MAX + 1))
    assert len(scene.broker.handed_back) == 1
    assert scene.broker.dead == []
    assert scene.concluded == []


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


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (("body-0123", 8), "task_id=None letter_id=body-0123 error=None body_bytes=8"),
        ((None, 7_000_000), "task_id=None letter_id=None error=None body_bytes=7000000"),
        (("x" * 5000, 8), f"task_id=None letter_id={'x' * 200} error=None body_bytes=8"),
        ("no such pair", "task_id=None letter_id=None error=None body_bytes=2"),
    ],
)
def test_the_line_of_a_refusal_names_the_dead_letter_and_its_size(
    scene: Scene, caplog: pytest.LogCaptureFixture, shown: Any, told: str
) -> None:
    scene.broker.shown = shown  # the last one is no pair: whatever a broker's part makes of an odd message
    scene.receive(task_id=None)
    [line] = [record.getMessage() for record in caplog.records if "message_refused" in record.msg]
    assert line == f"message_refused code=invalid_message {told}"


def test_what_comes_again_because_its_dead_letter_is_refused_is_told_and_counted_as_refused_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.broker.refuses_letters = True
    scene.book._in_background, scene.book._sleep = lambda work: work(), lambda seconds: None
    scene.receive(task_id=None)
    scene.broker.again = True
    for _ in range(3):
        scene.receive(task_id=None)
    assert scene.broker.went_back == 4
    assert scene.concluded == ["requeued"] * 4
    assert caplog.text.count("message_refused") == 1
    scene.broker.refuses_letters = False
    scene.receive(task_id=None)
    assert scene.concluded[4:] == ["invalid_message"]
