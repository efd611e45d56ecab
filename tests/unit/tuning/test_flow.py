"""What a window of a worker's own tasks says of its slots, by simulated tasks."""

from __future__ import annotations

import pytest

from forwarder.tuning.flow import Done, Flow, Seen


class Worker:
    """Slots that are filled again at once, or after a pause, with tasks of one length."""

    def __init__(self, *, slots: int, task_s: float, pause_s: float = 0.0, message_bytes: int = 100) -> None:
        self.flow = Flow()
        self.now_s = 0.0
        self.task_s = task_s
        self.pause_s = pause_s
        self.message_bytes = message_bytes
        self.starts = [0.0] * slots
        self.busy = self.failed = 0

    def look(self) -> Seen | None:
        """Let a second pass."""
        self.now_s += 1
        done = []
        for slot, start_s in enumerate(self.starts):
            while start_s + self.task_s <= self.now_s:
                done.append(Done(start_s, start_s + self.task_s, self.message_bytes))
                start_s += self.task_s + self.pause_s  # noqa: PLW2901
            self.starts[slot] = start_s
        held = [start_s for start_s in self.starts if start_s <= self.now_s]
        return self.flow.look(
            now_s=self.now_s,
            slots=len(self.starts),
            done=done,
            held_since_s=held,
            refused=(self.busy, self.failed),
        )

    def seen(self, within_s: int = 200) -> Seen:
        for _ in range(within_s):
            if seen := self.look():
                return seen
        raise AssertionError("no measurement")


@pytest.mark.parametrize("task_s", [0.05, 0.7, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_full_slots_end_as_many_tasks_as_they_can(slots: int, task_s: float) -> None:
    seen = Worker(slots=slots, task_s=task_s).seen()
    assert seen.level.concurrency == slots
    assert seen.level.per_s == pytest.approx(slots / task_s, rel=0.03)
    assert seen.level.latencies_s[0] == pytest.approx(task_s)
    assert seen.message_bytes[0] == 100


def test_a_pause_between_two_tasks_of_a_slot_counts() -> None:
    seen = Worker(slots=8, task_s=1.0, pause_s=0.2).seen()
    assert seen.level.per_s == pytest.approx(8 / 1.2, rel=0.05)


def test_slots_that_are_often_empty_tell_nothing() -> None:
    worker = Worker(slots=8, task_s=0.5, pause_s=0.5)
    assert [worker.look() for _ in range(100)] == [None] * 100


def test_one_task_of_each_slot_is_left_out_after_a_change_and_three_are_measured() -> None:
    worker = Worker(slots=4, task_s=10.0)  # which have begun their first before the change is seen
    assert [worker.look() for _ in range(49)] == [None] * 49
    assert worker.look() is not None


def test_a_change_in_the_midst_begins_anew() -> None:
    worker = Worker(slots=4, task_s=10.0)
    for _ in range(35):
        worker.look()
    worker.starts.append(worker.now_s)
    assert [worker.look() for _ in range(30)] == [None] * 30
    assert worker.seen().level.concurrency == 5


@pytest.mark.parametrize(("busy", "counted"), [(2, 0), (3, 3)])  # of 40 tasks
def test_what_is_refused_counts_in_the_window_in_which_it_was(busy: int, counted: int) -> None:
    worker = Worker(slots=4, task_s=0.5)
    worker.busy = worker.failed = 1000  # long ago
    for _ in range(3):
        worker.look()
    worker.busy += busy
    worker.failed += 7
    level = worker.seen().level
    assert (level.busy, level.failed) == (counted, 7)
    after = worker.seen().level
    assert (after.busy, after.failed) == (0, 0)


@pytest.mark.parametrize(("long_s", "every", "tasks"), [(1.05, 2, 20), (3.0, 2, 28), (500.0, 10, 400)])
def test_the_more_tasks_vary_the_more_are_measured_and_four_hundred_are_enough(
    long_s: float, every: int, tasks: int
) -> None:
    flow = Flow()
    for second in range(1, 200):
        lengths_s = [long_s if number % every == 0 else 1.0 for number in range(4 * second, 4 * second + 4)]
        done = [Done(second - length_s, second, 100) for length_s in lengths_s]
        seen = flow.look(now_s=second, slots=4, done=done, held_since_s=[float(second)] * 4, refused=(0, 0))
        if seen:
            assert tasks <= len(seen.message_bytes) <= tasks + 4
            return
    raise AssertionError("no measurement")
