"""The memory of processes, from a /proc of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.scaling.process_memory import EXACT_SHARE, PAGE_BYTES, Memory, ProcessMemory, exact

MB = 1024 * 1024
PARENT, CHILD, OTHER = 10, 11, 12
EXACT_COST_S = 0.004


class Machine:
    """A /proc with processes, and a clock."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.now_s = 0.0
        self.cpu_s = 0.0
        self.children: list[int] = []
        self.memory = Memory(
            pid=PARENT, children=lambda: self.children, proc=proc, now=lambda: self.now_s, cpu=self.cpu
        )

    def cpu(self) -> float:
        self.cpu_s += EXACT_COST_S  # each reading is bracketed by two looks at the clock
        return self.cpu_s

    def has(self, pid: int, *, rss_mb: int, files_mb: int = 0, unique_mb: int = 0, pss_mb: int = 0) -> None:
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        pages = [size * MB // PAGE_BYTES for size in (rss_mb * 3, rss_mb, files_mb)]
        (folder / "statm").write_text(" ".join(map(str, pages)) + " 1 0 50 0\n")
        (folder / "smaps_rollup").write_text(
            "00400000-7fff00000000 ---p 00000000 00:00 0    [rollup]\n"
            f"Rss:            {rss_mb * 1024} kB\nPss:            {pss_mb * 1024} kB\n"
            f"Pss_Anon:       7 kB\nPrivate_Clean:  1024 kB\nPrivate_Dirty:  {(unique_mb - 1) * 1024} kB\n"
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.has(PARENT, rss_mb=80, files_mb=20, unique_mb=30, pss_mb=50)
    return made


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mb(memory: ProcessMemory) -> tuple[int, int, int]:
    return memory.rss_bytes // MB, memory.unique_bytes // MB, memory.proportional_bytes // MB


def test_an_exact_reading_sums_what_is_private(machine: Machine) -> None:
    memory = exact(PARENT, proc=machine.proc)
    assert memory is not None
    assert mb(memory) == (80, 30, 50)


def test_a_process_that_has_ended_has_no_reading(machine: Machine) -> None:
    assert exact(99, proc=machine.proc) is None
    machine.children = [99]
    assert machine.memory.sample().by_pid.keys() == {PARENT}


def test_between_exact_readings_growth_counts_as_the_processs_own(machine: Machine) -> None:
    assert mb(machine.memory.sample().by_pid[PARENT]) == (80, 30, 50)
    machine.has(PARENT, rss_mb=95, files_mb=20, unique_mb=60, pss_mb=60)
    assert mb(machine.memory.sample().by_pid[PARENT]) == (95, 45, 65)
    machine.has(PARENT, rss_mb=40, files_mb=20, unique_mb=39, pss_mb=39)
    assert mb(machine.memory.sample().by_pid[PARENT]) == (40, 0, 10)


def test_a_child_that_was_not_read_yet_has_what_it_has_more_than_its_parent(machine: Machine) -> None:
    machine.memory.sample()
    machine.children = [CHILD]
    machine.has(CHILD, rss_mb=75, files_mb=5, unique_mb=33, pss_mb=40)
    assert mb(machine.memory.sample().by_pid[CHILD]) == (75, 10, 10)
    assert mb(machine.memory.sample(exactly=[CHILD]).by_pid[CHILD]) == (75, 33, 40)


def test_exact_readings_go_round_and_cost_no_more_than_their_share(machine: Machine) -> None:
    machine.children = [CHILD, OTHER]
    machine.has(CHILD, rss_mb=70, unique_mb=21, pss_mb=22)
    machine.has(OTHER, rss_mb=70, unique_mb=31, pss_mb=32)
    pause_s = EXACT_COST_S / EXACT_SHARE
    read = []
    for _ in range(4):
        sample = machine.memory.sample()
        read.append([pid for pid in (PARENT, CHILD, OTHER) if sample.by_pid[pid].unique_bytes > 20 * MB])
        before = machine.cpu_s
        machine.now_s += pause_s * 0.9
        machine.memory.sample()
        assert machine.cpu_s == before, "read before its time"
        machine.now_s += pause_s * 0.2
    assert read == [[PARENT], [PARENT, CHILD], [PARENT, CHILD, OTHER], [PARENT, CHILD, OTHER]]


def test_the_totals_are_sums(machine: Machine) -> None:
    machine.children = [CHILD]
    machine.has(CHILD, rss_mb=70, unique_mb=21, pss_mb=22)
    sample = machine.memory.sample(exactly=[PARENT, CHILD])
    totals = sample.rss_bytes, sample.unique_bytes, sample.proportional_bytes
    assert totals == (150 * MB, 51 * MB, 72 * MB)


def test_files_of_processes_that_have_ended_are_closed(machine: Machine) -> None:
    machine.children = [CHILD]
    machine.has(CHILD, rss_mb=70, unique_mb=21, pss_mb=22)
    machine.memory.sample()
    open_before = open_files()
    machine.children = []
    machine.memory.sample()
    assert open_files() == open_before - 1
    machine.memory.close()
    assert open_files() == open_before - 2


def test_this_process_is_about_as_large_as_the_kernel_says() -> None:
    sample = Memory().sample()
    (memory,) = sample.by_pid.values()
    assert 0 < memory.unique_bytes <= memory.proportional_bytes <= memory.rss_bytes == sample.rss_bytes
