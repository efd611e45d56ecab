"""What children of the prefork pool have counted reaches the main process, whole and once."""

from __future__ import annotations

import json
import logging
import os
import select
from collections.abc import Iterator

import pytest

from forwarder.telemetry.children import SAMPLES_MAX, ChildPipe
from forwarder.telemetry.metrics import SERIES_MAX, VALUE_CHARS_MAX, ProcessMetrics, Series

TASKS, SECONDS = "forwarder_tasks_total", "forwarder_task_seconds"
BACKLOG = Series("forwarder_hook_backlog", ("a",))


class Pool:
    """A main process's table and its pipe; every child here has this process's pid."""

    def __init__(self) -> None:
        self.metrics = ProcessMetrics(samples_max=1000)
        self.alive = {os.getpid()}
        self.pipe = ChildPipe(metrics=self.metrics, alive=lambda: self.alive)

    def read(self) -> None:
        """Take in all that was written."""
        self.pipe.start()
        self.pipe.stop()


@pytest.fixture
def pool() -> Iterator[Pool]:
    scene = Pool()
    yield scene
    os.close(scene.pipe._reads)
    os.close(scene.pipe._writes)


def child() -> ProcessMetrics:
    return ProcessMetrics(samples_max=SAMPLES_MAX)


def test_the_sums_of_children_are_added_up(pool: Pool) -> None:
    pool.metrics.count(TASKS, queue="q", outcome="invalid_message")
    for table in (child(), child()):
        table.count(TASKS, queue="q", outcome="success")
        table.observe(SECONDS, 0.2, queue="q")
        pool.pipe.send(table)
        table.count(TASKS, 2, queue="q", outcome="success")
        pool.pipe.send(table)
    pool.read()
    assert pool.metrics.snapshot() == {
        "forwarder_tasks_total{queue=q,outcome=success}": 6,
        "forwarder_tasks_total{queue=q,outcome=invalid_message}": 1,
        "forwarder_task_seconds{queue=q}_count": 2,
        "forwarder_task_seconds{queue=q}_sum": 0.4,
    }
    assert list(pool.metrics.histograms()[0].samples) == [0.2, 0.2]


def test_a_full_pipe_loses_nothing_and_holds_nobody_up(pool: Pool) -> None:
    table = child()
    for _ in range(5000):
        table.count(TASKS, queue="q", outcome="success")
        table.observe(SECONDS, 1.0, queue="q")
        pool.pipe.send(table)
    assert table.value(TASKS, queue="q", outcome="success") > 0, "the pipe was never full"
    pool.pipe.start()
    while table.snapshot()["forwarder_task_seconds{queue=q}_count"]:
        pool.pipe.send(table)
    pool.pipe.stop()
    assert pool.metrics.value(TASKS, queue="q", outcome="success") == 5000
    assert pool.metrics.snapshot()["forwarder_task_seconds{queue=q}_count"] == 5000


def test_every_write_is_one_that_the_kernel_does_not_split_however_much_there_is(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda number, line: writes.append(line))
    table = child()
    for number in range(SERIES_MAX):
        table.count(TASKS, 10**9, queue="\N{SNOWMAN}" * VALUE_CHARS_MAX, outcome=str(number))
    for number in range(SAMPLES_MAX + 1):
        table.observe(SECONDS, 10 / 3 + number, queue="\N{SNOWMAN}" * VALUE_CHARS_MAX)
    pool.pipe.send(table)
    assert len(writes) > 100
    assert max(map(len, writes)) <= select.PIPE_BUF
    assert sum(len(json.loads(line)) - 1 for line in writes) == SERIES_MAX + 1
    assert all(line.endswith(b"]\n") for line in writes)


def test_nothing_is_written_where_nothing_was_counted(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: pytest.fail("written"))
    pool.pipe.send(child())


def test_what_goes_on_in_a_child_that_was_killed_goes_on_no_longer(pool: Pool) -> None:
    table = child()
    table.change("forwarder_hook_backlog", 2, hook="a")
    pool.pipe.send(table)
    table.change("forwarder_hook_backlog", -1, hook="a")
    pool.pipe.send(table)
    pool.read()
    assert pool.pipe.levels() == {BACKLOG: 1}
    pool.alive.clear()
    assert pool.pipe.levels() == {}
    pool.alive.add(os.getpid())
    assert pool.pipe.levels() == {}, "another child with the same pid"


def test_children_that_are_gone_are_forgotten_also_where_nobody_asks(pool: Pool) -> None:
    pool.alive = set()
    for pid in range(100):
        pool.pipe._take_in(b'[%d,["forwarder_tasks_total",["q","success"],1]]' % pid)
        pool.pipe._take_in(b'[%d,["forwarder_hook_backlog",["a"],1]]' % pid)
    assert pool.metrics.value(TASKS, queue="q", outcome="success") == 100
    assert len(pool.pipe._levels) == 1


def test_a_child_that_is_born_during_a_look_is_not_taken_for_a_dead_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def born_meanwhile() -> set[int]:
        monkeypatch.setattr(pool.pipe, "_alive", lambda: {7})
        pool.pipe._take_in(b'[7,["forwarder_hook_backlog",["a"],1]]')
        return set()

    monkeypatch.setattr(pool.pipe, "_alive", born_meanwhile)
    pool.pipe.levels()
    assert pool.pipe.levels() == {BACKLOG: 1}


def test_a_line_that_cannot_be_read_is_told_once_and_ends_nothing(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    for line in (b"not json\n", b'[1,["forwarder_secret",[],1]]\n', b"\n"):
        os.write(pool.pipe._writes, line)
    table = child()
    table.count(TASKS, queue="q", outcome="success")
    pool.pipe.send(table)
    with caplog.at_level(logging.ERROR):
        pool.read()
    assert pool.metrics.value(TASKS, queue="q", outcome="success") == 1
    assert caplog.messages == ["child_counts_unreadable error=JSONDecodeError"]


def test_the_end_does_not_wait_for_a_reader_that_never_began(pool: Pool) -> None:
    pool.pipe.stop()


def test_a_child_whose_main_process_is_gone_raises_nothing(pool: Pool) -> None:
    table = child()
    table.count(TASKS, queue="q", outcome="success")
    os.close(pool.pipe._reads)
    pool.pipe.send(table)
    pool.pipe._reads = os.open(os.devnull, os.O_RDONLY)
    assert table.value(TASKS, queue="q", outcome="success") == 1
