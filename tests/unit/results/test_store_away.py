"""A task waits for a result store that is away, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, Task, states
from celery._state import _task_stack  # type: ignore[attr-defined]  # the stubs lack it
from celery.app.task import Context
from celery.exceptions import Reject
from kombu.exceptions import EncodeError

from forwarder.forwarding.errors import InvalidPayload
from forwarder.results.patience import Patience
from forwarder.results.redis import RedisBackend
from tests.unit.results.memory_backend import MemoryBackend


class AwayBackend(MemoryBackend):
    """Fails so many times at each operation."""

    fails = 0
    error: Exception = ConnectionError("store.example.com")

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        return isinstance(exc, ConnectionError)

    def set(self, key: Any, value: Any) -> None:
        self._fail()
        super().set(key, value)

    def get(self, key: Any) -> str | None:
        self._fail()
        return super().get(key)

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            self.calls.append("failed")
            raise self.error


@pytest.fixture
def away() -> AwayBackend:
    app = Celery(set_as_current=False)
    patience = Patience(bound_s=60.0, sleep=lambda seconds: None)
    app.conf.result_backend_transport_options = {"patience": patience}
    return AwayBackend(app=app)


@pytest.fixture
def in_a_task(away: AwayBackend) -> Iterator[None]:
    class Running(Task[..., Any]):
        name = "running"

    _task_stack.push(away.app.register_task(Running()))  # type: ignore[attr-defined]
    yield
    _task_stack.pop()


@pytest.mark.usefixtures("in_a_task")
def test_a_running_task_waits_for_its_store(away: AwayBackend) -> None:
    away.fails = 3
    away.store_result("t1", {"result": 1}, states.SUCCESS)
    away.fails = 2
    assert away.find("t1") is not None
    assert away.calls == ["failed"] * 3 + ["set"] + ["failed"] * 2 + ["get"]


@pytest.mark.usefixtures("in_a_task")
def test_a_running_task_whose_store_stays_away_goes_back_to_the_queue(away: AwayBackend) -> None:
    away._patience = Patience(bound_s=0.0)
    for step in (lambda: away.store_result("t1", {}, states.SUCCESS), lambda: away.find("t1")):
        away.fails = 1
        with pytest.raises(Reject) as caught:
            step()
        assert caught.value.args == ("result_store_unavailable", True)  # the second is: requeue
        assert caught.value.__suppress_context__


@pytest.mark.usefixtures("in_a_task")
def test_pardons_wait_for_a_store_that_is_away_and_for_nothing_that_may_last(
    away: AwayBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a task that is to fail for good would go round for as long as they can't be read."""
    away.pardon("t1")
    away.fails = 2
    assert away.pardons("t1") == 1
    away.error = redis.exceptions.NoPermissionError("store.example.com")
    away.fails, away.calls = 5, []
    assert away.pardons("t1") == 0
    assert away.calls == ["failed"]
    assert caplog.text.count("pardons_unreadable task_id=t1 error=NoPermissionError") == 1
    assert "store.example.com" not in caplog.text


@pytest.mark.usefixtures("in_a_task")
def test_what_can_never_be_stored_is_not_tried_again(away: AwayBackend) -> None:
    away.fails = 5
    with pytest.raises(EncodeError):
        away.store_result("t1", "x" * 10_000, states.SUCCESS)
    assert away.calls == []


def test_outside_of_a_task_nobody_waits(away: AwayBackend) -> None:
    """The worker's main loop stores the outcome of a task that was revoked or refused."""
    away.fails = 1
    with pytest.raises(ConnectionError):
        away.store_result("t1", InvalidPayload("no"), states.FAILURE)
    away.fails = 1
    with pytest.raises(Reject):
        away.store_result("t1", InvalidPayload("no"), states.FAILURE, request=Context({"id": "t1"}))
    assert away.calls == ["failed", "failed"]


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (redis.ConnectionError(), True),
        (redis.TimeoutError(), True),
        (redis.exceptions.NoPermissionError(), False),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed"), False),
    ],
)
def test_redis_is_away_where_it_can_not_be_reached(error: Exception, is_away: bool) -> None:
    backend = RedisBackend(app=Celery(set_as_current=False), url="redis://127.0.0.1:1")
    assert backend.exception_safe_to_retry(error) is is_away


def test_redis_is_asked_once_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own twenty tries sleep where the worker's main loop must not."""
    backend = RedisBackend(app=Celery(set_as_current=False), url="redis://127.0.0.1:1")
    tries = []

    def refuse(*args: Any) -> None:
        tries.append(args)
        raise redis.ConnectionError

    monkeypatch.setattr(backend, "_set", refuse)
    with pytest.raises(redis.ConnectionError):
        backend.store_result("t1", {}, states.SUCCESS)
    assert len(tries) == 1
