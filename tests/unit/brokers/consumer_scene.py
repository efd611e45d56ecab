"""A consumer around a lease book, with fakes for its broker, its store and Celery's worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import states
from celery.exceptions import Reject
from celery.worker.consumer import Consumer

from forwarder.brokers.consumer import ForwarderConsumer
from forwarder.brokers.deliveries import Death, Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.forwarding.errors import ForwarderError
from forwarder.forwarding.ports import PARDONS_MAX

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
        self.shown: tuple[str | None, int] = ("body-0123", 8)
        self.refuses_letters = False
        self.went_back = 0

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
        if self.refuses_letters:
            raise PermissionError
        self.dead.append(death)
        return True

    def put_off(self, delivery: Delivery) -> bool:
        self.went_back += 1
        return True

    def refusal(self, error: Exception) -> str | None:
        return "denied" if isinstance(error, PermissionError) else None

    def letter(self, delivery: Delivery) -> tuple[str | None, int]:
        return self.shown

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
        self.concluded: list[str] = []
        self.book.concluded = lambda delivery, outcome: self.concluded.append(outcome)
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
