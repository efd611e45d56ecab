"""Memory, descriptors and connections of a worker's processes, read from a made-up /proc."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.loadtest.processes import Sampler
from forwarder.scaling.process_memory import PAGE_BYTES

KB = 1024
TCP = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class Proc:
    """A /proc with the processes that a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pids: list[int] = []

    def put(
        self, pid: int, *, pages: int, of_files: int = 0, private_kb: int = 0, shared_kb: int = 0
    ) -> None:
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        (folder / "net").mkdir(exist_ok=True)
        (folder / "statm").write_text(f"9999 {pages} {of_files} 1 0 1 0\n")
        (folder / "smaps_rollup").write_text(
            f"0-1 ---p 0 00:00 0 [rollup]\nRss: {pages * PAGE_BYTES // KB} kB\n"
            f"Pss: {private_kb + shared_kb // 2} kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: {private_kb} kB\n"
        )
        if pid not in self.pids:
            self.pids.append(pid)

    def open(self, pid: int, *targets: str) -> None:
        for number, target in enumerate(targets):
            (self.root / str(pid) / "fd" / str(number)).symlink_to(target)

    def connections(self, pid: int, *states_and_inodes: tuple[str, int]) -> None:
        lines = (f"0: 0:1 0:2 {state} 0:0 00:0 0 0 0 {inode} 1\n" for state, inode in states_and_inodes)
        (self.root / str(pid) / "net" / "tcp").write_text(TCP + "".join(lines))

    def family(self, pid: int) -> list[Any]:
        return [SimpleNamespace(pid=each) for each in self.pids]


class Clock:
    now = 0.0
    cpu = 0.0


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def sampler(proc: Proc, clock: Clock, exact_share: float = 1.0) -> Sampler:
    def cpu() -> float:
        clock.cpu += 0.4  # what a reading costs
        return clock.cpu

    return Sampler(
        pid=1,
        exact_share=exact_share,
        proc=proc.root,
        now=lambda: clock.now,
        cpu=cpu,
        processes=proc.family,
    )


def test_each_process_is_read_exactly_where_there_is_time(proc: Proc) -> None:
    proc.put(1, pages=1000, private_kb=800, shared_kb=400)
    proc.put(2, pages=900, private_kb=300, shared_kb=400)
    look = sampler(proc, Clock(), exact_share=10.0).look()
    assert [each.unique_bytes for each in look.processes] == [800 * KB, 300 * KB]
    assert [each.proportional_bytes for each in look.processes] == [1000 * KB, 500 * KB]
    assert look.total("rss_bytes") == 1900 * PAGE_BYTES
    assert [child.pid for child in look.children] == [2]


def test_readings_go_round_within_their_share_of_a_core(proc: Proc) -> None:
    for pid in (1, 2, 3):
        proc.put(pid, pages=1000, private_kb=100 * pid)
    clock = Clock()
    watching = sampler(proc, clock, exact_share=0.1)
    for expected in ({1}, {1, 2}, {1, 2, 3}):
        look = watching.look()
        exact = {each.pid for each in look.processes if each.unique_bytes == 100 * each.pid * KB}
        assert exact == expected
        clock.now += 1.0


def test_between_readings_a_process_grows_by_pages_of_its_own(proc: Proc) -> None:
    proc.put(1, pages=1000, private_kb=800)
    proc.put(2, pages=900, private_kb=300)
    clock = Clock()
    watching = sampler(proc, clock, exact_share=0.1)
    watching.look()
    clock.now = 1.0
    proc.put(1, pages=1100, private_kb=1)
    main, _ = watching.look().processes  # in which it is the other's turn to be read
    assert main.unique_bytes == 800 * KB + 100 * PAGE_BYTES


def test_a_child_that_was_not_read_yet_has_what_the_main_process_has_not(proc: Proc) -> None:
    proc.put(1, pages=1000, of_files=200, private_kb=800)
    proc.put(2, pages=1100, of_files=100, private_kb=1)
    (_, child) = sampler(proc, Clock(), exact_share=0.1).look().processes
    assert child.unique_bytes == (1000 - 800) * PAGE_BYTES


def test_descriptors_and_established_connections_are_counted_where_they_are_open(proc: Proc) -> None:
    proc.put(1, pages=10)
    proc.put(2, pages=10)
    proc.open(1, "socket:[11]", "socket:[12]", "/dev/null", "pipe:[13]")
    proc.open(2, "socket:[14]")
    proc.connections(1, ("01", 11), ("0A", 12), ("01", 14), ("01", 99))
    look = sampler(proc, Clock()).look()
    assert [each.descriptors for each in look.processes] == [4, 1]
    assert [each.connections for each in look.processes] == [1, 1]


def test_a_process_that_has_ended_is_left_out(proc: Proc) -> None:
    proc.put(1, pages=10)
    proc.pids.append(2)
    look = sampler(proc, Clock()).look()
    assert [each.pid for each in look.processes] == [1]


@pytest.mark.parametrize("zombie", [False, True])
def test_a_worker_that_was_there_and_is_no_more_is_gone(proc: Proc, zombie: bool) -> None:
    proc.put(1, pages=10)
    watching = sampler(proc, Clock())
    assert not watching.look().gone
    proc.put(1, pages=0)
    if not zombie:
        proc.pids.clear()
    assert [watching.look().gone, watching.look().gone] == [True, True]


def test_a_worker_that_was_never_there_is_not_gone(proc: Proc) -> None:
    assert not sampler(proc, Clock()).look().gone


def test_a_zombie_is_left_out(proc: Proc) -> None:
    proc.put(1, pages=10)
    proc.put(2, pages=0)
    assert len(sampler(proc, Clock()).look().processes) == 1
