"""A request as Celery's strategy makes it, with fakes for its leases, its store and its pool."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.worker import state
from celery.worker.request import create_request_cls  # type: ignore[attr-defined]  # the stubs lack it
from celery.worker.strategy import hybrid_to_proto2  # type: ignore[attr-defined]  # the stubs lack it
from kombu.message import Message

from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.brokers.request import ForwardRequest
from forwarder.forwarding.task import ForwardTask

MAX_DELIVERIES = 5
SECRET = "payload-text"


class FakeLeases:
    """Notes how each delivery was settled."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.settled: list[str] = []
        self.deaths: list[Death] = []

    def receive(self, message: Any) -> Delivery:
        return Delivery(tag="tag", queue="q", number=self.number, confirmed_s=0.0, message=message)

    def ack(self, delivery: Delivery) -> bool:
        self.settled.append("ack")
        return True

    def requeue(self, delivery: Delivery) -> bool:
        self.settled.append("requeue")
        return True

    def hand_back(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        self.settled.append("hand_back")
        return []

    def put_aside(self, delivery: Delivery, death: Death) -> bool:
        self.settled.append("put_aside")
        self.deaths.append(death)
        return True


class FakeBackend:
    """The result store: ``found`` is what it holds, ``away`` for how many calls it fails."""

    def __init__(self) -> None:
        self.found: object = None
        self.away = 0
        self.revoked: list[str] = []

    def find(self, task_id: str) -> object:
        if self.away:
            self.away -= 1
            raise ConnectionError(SECRET)
        return self.found

    def mark_as_revoked(self, task_id: str, reason: str, **_: Any) -> None:
        self.revoked.append(reason)


class FakePool:
    def __init__(self) -> None:
        self.killed: list[tuple[Any, int]] = []
        self.applied: list[str] = []
        self.sent: list[tuple[Any, ...]] = []

    def terminate_job(self, pid: Any, number: int) -> None:
        self.killed.append((pid, number))

    def apply_async(self, target: Any, *, args: tuple[Any, ...], correlation_id: str, **_: Any) -> object:
        self.applied.append(correlation_id)
        self.sent.append(args)
        return self


class Scene:
    """One request as Celery's strategy makes it, with fakes around it."""

    ids = itertools.count()

    def __init__(
        self,
        *,
        number: int = 1,
        headers: dict[str, Any] | None = None,
        body: Any = ((SECRET,), {}, {}),
        slots_are_here: bool = False,
    ) -> None:
        self.leases = FakeLeases(number)
        self.book = LeaseBook(lambda: self.leases)  # type: ignore[arg-type,return-value]
        self.pardoned: list[Delivery] = []
        self.book.pardon = self.pardoned.append
        self.concluded: list[str] = []
        self.book.concluded = lambda delivery, outcome: self.concluded.append(outcome)
        self.backend = FakeBackend()
        self.pool = FakePool()
        self.events: list[str] = []
        self.sleeps: list[float] = []
        self.background: list[Callable[[], None]] = []
        app = Celery("test", set_as_current=False, broker="memory://")
        app.conf.update(
            forwarder_book=self.book,
            forwarder_max_deliveries=MAX_DELIVERIES,
            forwarder_store=self.backend,
            forwarder_slots_are_here=slots_are_here,
        )
        parts: Any = None
        app.register_task(
            ForwardTask(
                name="forwarder.forward",
                parts=parts,
                track_started=False,
                max_deliveries=MAX_DELIVERIES,
                visibility_timeout_s=60,
            )
        )
        self.task = app.tasks["forwarder.forward"]
        self.request = self._request(app, headers or {}, body)

    def _request(self, app: Celery, headers: dict[str, Any], body: Any) -> Any:
        task_id = f"id-{next(self.ids)}"
        message: Any = Message(
            body=json.dumps(body),
            content_type="application/json",
            content_encoding="utf-8",
            headers={"id": task_id, "task": "forwarder.forward", **headers},
            delivery_info={},
            properties={},
        )
        message.delivery = self.delivery = self.book.open(message)
        eventer = SimpleNamespace(enabled=True, groups=set(), send=lambda kind, **_: self.events.append(kind))
        kind = create_request_cls(ForwardRequest, self.task, self.pool, "here", eventer, app=app)
        # As Celery's strategy does, with its function for protocol 1.
        decoded = hybrid_to_proto2(message, body) if isinstance(body, dict) else (None, None, False, True)
        options = dict(zip(("body", "headers", "decoded", "utc"), decoded, strict=True))
        request = kind(message, app=app, hostname="here", eventer=eventer, task=self.task, **options)
        request.in_background = self.background.append
        request.sleep = self.sleeps.append
        request.uniform = lambda low, high: (low + high) / 2
        state.task_reserved(request)
        return request

    def accept(self) -> None:
        self.request.on_accepted(77, 0.0)

    def fail(self, error: BaseException, *, stored: bool = False) -> None:
        """End the task with an error: out of the tracer, or around it."""
        try:
            raise error
        except BaseException:  # noqa: BLE001 - whatever it is, Celery hands it over like this
            info = ExceptionInfo()
        if stored:
            self.request.on_success((1, info, 0.1))
        else:
            self.request.on_failure(info)

    @property
    def settled(self) -> list[str]:
        return self.leases.settled


@contextmanager
def no_requests_left() -> Iterator[None]:
    """Fail where Celery still counts a request that the test has made."""
    yield
    leaked = dict(state.requests)
    state.reset_state()
    assert not leaked, "Celery still counts the request as reserved or active"
