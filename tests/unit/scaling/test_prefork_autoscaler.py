"""The prefork autoscaler's decisions, on a pool of our own."""

from __future__ import annotations

import itertools
import logging
from types import SimpleNamespace

import pytest

from forwarder.scaling.pool_children import PoolChildren
from forwarder.scaling.prefork_autoscaler import MemoryAutoscaler
from tests.unit.scaling.prefork_scene import MB, Scene, full


def test_the_consumer_begins_with_as_many_messages_as_there_are_children() -> None:
    assert Scene().worker.max_concurrency == 2


def test_the_pool_grows_as_its_children_show_their_size_and_stops_at_the_cap() -> None:
    scene = Scene()
    sizes = []
    for _ in range(12):
        scene.work(mb=49)
        sizes.append(scene.tick(2))
    assert sizes[:3] == [4, 8, 13]
    assert set(sizes[3:]) == {13}
    assert scene.count("block", "cap") > 0


def test_children_that_have_not_worked_yet_hold_the_pool() -> None:
    scene = Scene()
    scene.busy(2)
    assert scene.tick(5) == 2
    assert scene.count("hold", "sizes_unknown") == 5


def test_a_large_step_is_forked_a_few_at_a_time() -> None:
    scene = Scene(step=3)
    sizes = [2]
    for _ in range(12):
        scene.work(mb=1)
        sizes.append(scene.tick())
    assert max(after - before for before, after in itertools.pairwise(sizes)) == 3
    assert sizes[-1] > 20


def test_a_step_is_finished_before_the_next_is_thought_of() -> None:
    scene = Scene(step=3)
    for size in (4, 7, 8):
        if size < 8:
            scene.work(mb=10)
        assert scene.tick() == size
    assert scene.count("hold", "on_its_way") == 1


def test_the_consumer_holds_as_many_messages_as_there_are_children() -> None:
    scene = Scene()
    for _ in range(12):
        scene.work(mb=49)
        assert scene.tick() == scene.prefetch.value == len(scene.inner._pool)
    assert scene.worker.consumer.initial_prefetch_count == scene.prefetch.value


def test_a_consumer_that_is_not_connected_is_told_later() -> None:
    scene = Scene()
    scene.worker.consumer.qos = None
    scene.work(mb=49)
    scene.tick()
    assert scene.prefetch.value == 2
    scene.worker.consumer.qos = scene.prefetch
    scene.tick()
    assert scene.prefetch.value == 4


def test_above_the_high_mark_no_child_with_a_task_is_ended_and_the_first_that_is_free_goes() -> None:
    scene = full(Scene())
    before = scene.inner._processes
    scene.work(mb=55)
    assert scene.tick(3) == before, "all have a task"
    assert scene.prefetch.value == before - 1, "and one gets no other"
    scene.inner._busy_workers.pop()
    assert scene.tick() == before - 1
    assert scene.count("shrink", "memory_above_high") > 0


def test_of_the_free_children_the_largest_goes_and_none_that_is_being_given_a_task() -> None:
    scene = full(Scene())
    scene.work(mb=55)
    small, large, given = scene.inner._pool[:3]
    scene.inner._busy_workers -= {small.inqW_fd, large.inqW_fd, given.inqW_fd}
    scene.inner._active_writes = {given.inqW_fd}
    small.mb, given.mb = 40, 90
    scene.tick()
    assert [child for child in (small, large, given) if child.told_to_end] == [large]


def test_idle_children_go_one_at_a_time_after_a_while_down_to_one_more_than_work() -> None:
    scene = full(Scene())
    scene.busy(4)
    assert scene.tick(4) == 13, "not at once"
    assert scene.tick(40) == 5
    scene.busy(0)
    assert scene.tick(40) == 2


def test_a_slot_whose_child_is_replaced_after_each_task_has_shown_its_size() -> None:
    scene = Scene()
    children = PoolChildren(scene.pool)
    children.look()
    assert children.shown() == 0
    scene.inner._pool[0].told_to_end = True
    scene.inner.maintain_pool()
    (new,) = children.look()
    assert children.shown() == 1
    assert new == scene.inner._pool[-1].pid
    assert children.look() == []


def test_a_task_that_comes_is_noted_between_decisions() -> None:
    scene = Scene()
    scene.work(mb=10)
    scene.busy(1)
    scene.autoscaler.maybe_scale(object())  # the second of two children
    scene.busy(0)
    assert scene.tick() == 4


def test_a_decision_that_fails_is_told_once_and_the_next_is_made(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.autoscaler._memory = SimpleNamespace()  # type: ignore[assignment]
    scene.work(mb=1)
    assert scene.tick(5) == 2
    assert [record.args for record in caplog.records] == [("AttributeError",)]
    scene.autoscaler._memory = SimpleNamespace(sample=scene.sample)  # type: ignore[assignment]
    assert scene.tick() == 4


def test_what_alternates_at_one_size_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    caplog.set_level(logging.INFO)
    for _ in range(20):
        scene.busy(1)
        scene.tick(2)
        scene.busy(2)
        scene.tick(2)
    told = [record.args[:2] for record in caplog.records if record.msg.startswith("autoscale action")]  # type: ignore[index]
    assert told == [("hold", "idle_children"), ("hold", "sizes_unknown")]
    scene.work(mb=1)
    scene.tick()
    scene.busy(1)
    scene.tick(2)
    told = [record.args[:2] for record in caplog.records if record.msg.startswith("autoscale action")]  # type: ignore[index]
    assert told[2:] == [("grow", "demand"), ("hold", "idle_children")]


def test_given_sizes_count_until_a_child_is_larger() -> None:
    scene = Scene(child_bytes=200 * MB)
    for _ in range(4):
        scene.work(mb=20)
        scene.tick(2)
    assert scene.inner._processes == 2  # 700 / 200 - 1
    assert scene.count("block", "cap") > 0


def test_new_bounds_are_followed_one_at_a_time() -> None:
    scene = full(Scene())
    assert scene.autoscaler.update(10, 3) == (10, 3)
    scene.inner._busy_workers.clear()
    assert [scene.tick(), scene.tick(), scene.tick(), scene.tick()] == [12, 11, 10, 10]
    with pytest.raises(ValueError, match="smallest size"):
        scene.autoscaler.update(2, 5)


def test_without_an_event_loop_it_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="no loop"):
        MemoryAutoscaler(Scene().pool, 8, 2, worker=Scene().worker, mutex=None)
