"""The autoscaler of the gevent pool between Celery, the book and the admission."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.threads import bgThread
from celery.worker import autoscale, components, control

from forwarder.scaling.admission import Admission
from forwarder.scaling.green_autoscaler import GreenAutoscaler


class Book:
    def __init__(self) -> None:
        self.running = 0
        self.backlog: int | Exception | None = 0
        self.leases = self

    def __len__(self) -> int:
        return self.running

    def waiting(self) -> int | None:
        if isinstance(self.backlog, Exception):
            raise self.backlog
        return self.backlog


class Scene:
    def __init__(self) -> None:
        self.book = Book()
        self.admission = Admission(slots_max=16, slots=2, bytes_max=100)
        conf = SimpleNamespace(forwarder_admission=self.admission, forwarder_book=self.book)
        self.pool = SimpleNamespace(limit=2)
        worker: Any = SimpleNamespace(app=SimpleNamespace(conf=conf))
        self.scaler: Any = GreenAutoscaler(self.pool, 16, 2, worker=worker)
        self.scaler.sleep = lambda seconds: None

    def rounds(self, number: int) -> int:
        for _ in range(number):
            self.scaler.body()
        return self.admission.slots


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_pool_has_all_its_slots_from_the_start_and_few_of_them_are_open(scene: Scene) -> None:
    assert (scene.pool.limit, scene.scaler.processes) == (16, 2)


def test_slots_open_by_what_waits(scene: Scene) -> None:
    scene.book.running, scene.book.backlog = 2, 100
    assert [scene.rounds(1) for _ in range(4)] == [4, 8, 16, 16]


def test_a_backlog_that_can_not_be_read_leaves_all_as_it_is_and_is_told_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.book.backlog = ConnectionError("hunter2")
    assert scene.rounds(3) == 2
    scene.book.backlog = None
    assert scene.rounds(1) == 2
    assert [record.getMessage() for record in caplog.records] == ["backlog_unreadable error=ConnectionError"]
    scene.book.backlog = ConnectionError("hunter2")
    scene.rounds(1)
    assert len(caplog.records) == 2, "a second outage is told, too"


def test_only_changes_are_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene.book.running, scene.book.backlog = 2, 1
    scene.rounds(5)
    assert len(caplog.records) == 1


def test_remote_control_changes_the_bounds_within_the_pools_size(scene: Scene) -> None:
    assert scene.scaler.update(max=99, min=4) == (16, 4)
    assert scene.rounds(1) == 4
    assert scene.scaler.update(max=3) == (3, 3)
    assert scene.rounds(1) == 3
    assert scene.scaler.info() == {"max": 3, "min": 3, "current": 3, "qty": 0}


@pytest.mark.parametrize(
    ("where", "markers"),
    [
        (
            autoscale.WorkerComponent.create,
            ["w.autoscaler_cls,", "w.pool, w.max_concurrency, w.min_concurrency,"],
        ),
        (autoscale.WorkerComponent.create, ["return scaler if not w.use_eventloop else None"]),
        (autoscale.Autoscaler.info, ["self.max_concurrency", "self.processes", "self.qty"]),
        (bgThread.run, ["body()", "os._exit(1)"]),
        (components.Pool.create, ["self.instantiate(", "w.pool_cls, w.min_concurrency,"]),
        (components.Consumer.create, ["max(w.max_concurrency, 1) * w.prefetch_multiplier"]),
        (vars(control)["autoscale"], ["autoscaler.update(max, min)"]),
    ],
)
def test_celerys_private_parts_are_as_the_autoscaler_expects_them(where: Any, markers: list[str]) -> None:
    source = inspect.getsource(where)
    for marker in markers:
        assert marker in source, f"{where.__qualname__} changed: review scaling/green_autoscaler.py"
