"""Which child may read on with a large answer, and when its turn is over."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from celery import signals

from forwarder import app
from forwarder.scaling.admission import TURN_BYTES
from forwarder.scaling.turns import POLL_S, SharedLock, Turns, all_fit, siblings
from forwarder.settings.model import Settings

MIB = 1024 * 1024


class OneTurn:
    """A lock that another child may have."""

    def __init__(self) -> None:
        self.taken = False

    def take(self) -> bool:
        if self.taken:
            return False
        self.taken = True
        return True

    def give_back(self) -> None:
        self.taken = False


class Scene:
    """Four children below a soft limit of 100 MiB, one of which is looked at."""

    def __init__(self, *, used_mb: int | None = 90, siblings: int = 4, children_max: int = 100) -> None:
        self.lock = OneTurn()
        self.used_mb = used_mb
        self.looks = 0
        self.slept_s: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.turns = Turns(
            lock=self.lock,
            high_bytes=100 * MIB,
            used_bytes=self._look,
            children_max=children_max,
            siblings=lambda: siblings,
            monotonic=lambda: sum(self.slept_s),
            sleep=self._sleep,
        )

    def _look(self) -> int | None:
        self.looks += 1
        return None if self.used_mb is None else self.used_mb * MIB

    def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.meanwhile()


@pytest.mark.parametrize(
    ("answer_bytes", "children", "room_bytes", "fit"),
    [
        (10, 1, 50, True),
        (10, 1, 49, False),
        (10, 20, 1000, True),
        (10, 20, 999, False),
        (1, 1, 0, False),
        (1, 1, -1, False),
    ],
)
def test_an_answer_fits_where_each_child_could_have_one_five_times(
    answer_bytes: int, children: int, room_bytes: int, fit: bool
) -> None:
    assert all_fit(answer_bytes, children=children, room_bytes=room_bytes) is fit


def test_a_small_answer_costs_no_look_and_no_turn() -> None:
    scene = Scene(used_mb=100)
    scene.lock.taken = True
    scene.turns.hold(TURN_BYTES, 60.0)
    assert (scene.looks, scene.slept_s) == (0, [])


def test_while_there_is_room_for_all_nobody_takes_a_turn_and_looks_are_few() -> None:
    scene = Scene(used_mb=0)
    for number in range(0, 2 * MIB, 64 * 1024):
        scene.turns.hold(number, 60.0)
    assert not scene.lock.taken
    assert scene.looks == 3  # above 256 KiB, and above twice and four times the bytes of that look


def test_without_room_a_child_goes_on_with_its_turn_until_its_task_is_over() -> None:
    scene = Scene()
    scene.turns.hold(MIB, 60.0)
    scene.used_mb = 1000
    scene.turns.hold(50 * MIB, 60.0)
    assert scene.lock.taken
    assert scene.slept_s == []
    scene.turns.end(task_id="as Celery's signal calls it")
    assert not scene.lock.taken


def test_a_child_waits_for_its_turn_until_another_gives_it_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scene = Scene()
    scene.lock.taken = True
    scene.meanwhile = lambda: scene.lock.give_back() if len(scene.slept_s) == 3 else None
    scene.turns.hold(MIB, 60.0)
    assert scene.slept_s == [POLL_S] * 3
    assert scene.lock.taken
    assert "answer_waited_for_memory waited_s=0.3" in caplog.text


def test_a_child_waits_no_longer_once_there_is_room_for_all() -> None:
    scene = Scene()
    scene.lock.taken = True

    def freed() -> None:
        scene.used_mb = 0

    scene.meanwhile = freed
    scene.turns.hold(MIB, 60.0)
    assert scene.slept_s == [POLL_S]
    scene.turns.end()
    assert scene.lock.taken, "gave back the turn of another"


def test_waiting_ends_with_the_time_that_the_call_has() -> None:
    scene = Scene()
    scene.lock.taken = True
    with pytest.raises(TimeoutError):
        scene.turns.hold(MIB, 1.0)
    assert sum(scene.slept_s) == pytest.approx(1.0, abs=2 * POLL_S)


@pytest.mark.parametrize("next_bytes", [0, 1000])
def test_an_answer_that_is_gone_or_on_the_disk_gives_the_turn_back(next_bytes: int) -> None:
    scene = Scene()
    scene.turns.hold(MIB, 60.0)
    scene.turns.hold(next_bytes, 60.0)
    assert not scene.lock.taken


def test_each_task_is_asked_anew() -> None:
    scene = Scene(used_mb=0)
    scene.turns.hold(MIB, 60.0)
    scene.turns.end()
    scene.used_mb = 100
    scene.turns.hold(MIB, 60.0)
    assert scene.lock.taken


def test_where_nobody_can_tell_what_is_used_nothing_waits() -> None:
    scene = Scene(used_mb=None)
    scene.lock.taken = True
    scene.turns.hold(MIB, 60.0)
    assert scene.slept_s == []


def test_where_nobody_can_tell_how_many_children_there_are_they_are_as_many_as_may_be() -> None:
    few, many = (Scene(used_mb=50, siblings=0, children_max=number) for number in (4, 100))
    few.turns.hold(MIB, 60.0)
    many.turns.hold(MIB, 60.0)
    assert (few.lock.taken, many.lock.taken) == (False, True)


@contextmanager
def child_that_runs(first: Callable[[], object]) -> Iterator[int]:
    """Fork a process that does one thing and then waits to be killed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write_end, str(first()).encode())
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read_end, 10) == b"True"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)


def test_one_process_at_a_time_has_the_lock_and_a_killed_one_no_longer() -> None:
    lock = SharedLock()
    with child_that_runs(lock.take):
        assert not lock.take()
    assert lock.take()
    lock.give_back()
    with child_that_runs(lock.take):
        assert not lock.take()


def test_the_siblings_are_all_children_of_the_parent_whichever_thread_has_forked_them() -> None:
    counts: list[bool] = []

    def count_in_a_thread() -> None:
        with child_that_runs(lambda: siblings() == 2):
            counts.append(True)

    def parent() -> bool:
        """Have two children of its own, as the test itself may have others."""
        with child_that_runs(lambda: True):
            thread = threading.Thread(target=count_in_a_thread)
            thread.start()
            thread.join(20)
        return counts == [True]

    with child_that_runs(parent):
        pass


def test_a_prefork_childs_turn_is_over_when_celery_says_that_its_task_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    monkeypatch.setattr(app, "Turns", lambda **_: scene.turns)
    before = list(signals.task_postrun.receivers)
    parts = app.Composition(Settings(pool="prefork")).parts.get()
    try:
        parts.inference._hold(MIB, 60.0)
        assert scene.lock.taken
        signals.task_postrun.send(sender=None, task_id="t1")
        assert not scene.lock.taken
    finally:
        signals.task_postrun.receivers = before
