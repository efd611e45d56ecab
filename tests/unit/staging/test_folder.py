"""The staging folder: its bound, whose turn it is, and what becomes of dead workers' files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forwarder.forwarding.errors import is_shortage
from forwarder.staging.files import StagedFile
from forwarder.staging.folder import LEFTOVER_S_MAX, OVERRUN, StagingFolder, StagingFull

URL = "s3://bucket/key"


class Bench:
    """A folder of 100 bytes, 30 of them for one that overruns; time passes when somebody sleeps."""

    def __init__(self, parent: Path) -> None:
        self.now = 1000.0
        self.asleep: Callable[[], object] = lambda: None
        self.parent = parent
        self.folder = self.another()

    def another(self, *, boot: str = "boot") -> StagingFolder:
        """Return the folder as another process has it."""
        return StagingFolder(
            parent=self.parent,
            bytes_max=100,
            overrun_bytes=30,
            boot=boot,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.asleep()

    @property
    def path(self) -> Path:
        return self.parent / f"forwarder-staging-{os.geteuid()}"

    def files(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.suffix != ".lock"]

    def create(self, size_bytes: int, *, wait_s: float = 0.0) -> StagedFile:
        return self.folder.create(size_bytes, until=self.now + wait_s)

    def leave_behind(self, content: bytes, *, tag: str | None = '"1"', whole: bool = True) -> Path:
        """Leave a file as a killed worker does: there, but unlocked."""
        before = set(self.files()) if self.path.exists() else set()
        file = self.folder.create(len(content), until=self.now, url=URL, tag=tag)
        file.write(content)
        if whole:
            file.finish()
        os.close(file._open)
        (path,) = set(self.files()) - before
        os.utime(path, (self.now, self.now))
        return path

    def find(self, *, tag: str = '"1"', size_bytes: int = 3, boot: str = "boot") -> StagedFile | None:
        return self.another(boot=boot).find(url=URL, tag=tag, size_bytes=size_bytes, until=self.now)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_was_promised_counts_and_not_what_was_written(bench: Bench) -> None:
    bench.create(50)
    with pytest.raises(StagingFull):
        bench.create(21)
    bench.create(20)


def test_other_processes_files_count(bench: Bench) -> None:
    bench.create(50)
    with pytest.raises(StagingFull):
        bench.another().create(21, until=bench.now)


def test_who_finds_no_room_waits_until_there_is(bench: Bench) -> None:
    first = bench.create(50)
    waited = []
    bench.asleep = lambda: first.remove() if bench.now > 1004.95 else None
    file = bench.folder.create(60, until=bench.now + 60.0, waiting=lambda: waited.append(bench.now))
    assert file.size_bytes == 60
    assert bench.now == pytest.approx(1005.0, abs=0.01)
    assert waited == [1000.0]


def test_who_waits_in_vain_sends_the_task_back_to_its_queue(bench: Bench) -> None:
    bench.create(70)
    with pytest.raises(StagingFull) as raised:
        bench.create(1, wait_s=3.0)
    assert bench.now == pytest.approx(1003.0)
    assert raised.value.errno == errno.ENOSPC
    assert is_shortage(raised.value)


def test_nobody_overtakes_a_large_file_that_waits(bench: Bench) -> None:
    bench.create(50)
    overtaken = []

    def another() -> None:
        bench.asleep = lambda: None
        with pytest.raises(StagingFull):
            bench.another().create(1, until=bench.now)
        overtaken.append(False)

    bench.asleep = another
    with pytest.raises(StagingFull):
        bench.create(60, wait_s=1.0)
    assert overtaken == [False]
    assert bench.create(1).size_bytes == 1, "the line has moved on"


def test_a_file_that_ends_makes_room_and_leaves_nothing(bench: Bench) -> None:
    file = bench.create(70)
    file.remove()
    file.remove()
    assert bench.files() == []
    bench.create(70)


def test_a_whole_file_gives_back_what_it_did_not_need(bench: Bench) -> None:
    file = bench.create(70)
    file.write(b"abc")
    file.finish()
    assert file.body.path.read_bytes() == b"abc"
    assert file.body.size_bytes == 3
    bench.create(67)


def test_a_disk_that_takes_less_than_it_is_given_is_given_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))
    file = bench.create(5)
    file.write(b"abcde")
    assert file.written_bytes == 5
    assert file.body.path.read_bytes() == b"abcde"


def test_one_growing_file_may_use_what_is_kept_for_one(bench: Bench) -> None:
    bench.create(70)
    growing, other = (bench.folder.create_empty(until=bench.now) for _ in range(2))
    bench.folder.grow(growing, 10, until=bench.now)
    bench.folder.grow(growing, 30, until=bench.now)
    with pytest.raises(StagingFull):
        bench.folder.grow(other, 1, until=bench.now)
    growing.remove()
    bench.folder.grow(other, 30, until=bench.now)
    assert sum(path.stat().st_size for path in bench.files()) == 100


def test_a_file_that_grows_needs_not_wait_for_the_one_that_waits_for_room(bench: Bench) -> None:
    """It may belong to the task that holds the room."""
    bench.create(50)
    grown = []

    def grow() -> None:
        bench.asleep = lambda: None
        file = bench.another().create_empty(until=bench.now)
        bench.another().grow(file, 20, until=bench.now)
        grown.append(file.size_bytes)

    bench.asleep = grow
    with pytest.raises(StagingFull):
        bench.create(60, wait_s=1.0)
    assert grown == [20]


def test_a_dead_workers_whole_file_is_used_again(bench: Bench) -> None:
    path = bench.leave_behind(b"abc")
    file = bench.find()
    assert file is not None
    assert file.whole
    assert file.body.path == path
    assert file.body.path.read_bytes() == b"abc"
    assert bench.find() is None, "it is in use now"
    file.remove()
    assert bench.files() == []


def test_a_file_whose_task_ends_while_it_is_looked_at_is_not_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.folder.create(3, until=bench.now, url=URL, tag='"1"')
    file.write(b"abc")
    file.finish()
    opening, closing = os.open, os.close
    closed: list[int] = []

    def opened(path: Path, *how: int) -> int:
        descriptor = opening(path, *how)
        if path == file.body.path:
            file.remove()
        return descriptor

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        closing(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "close", close)
    assert bench.find() is None
    assert len(closed) == 3, "the other task's, ours, and the lock's"


@pytest.mark.parametrize(
    "asked", [{"tag": '"2"'}, {"size_bytes": 4}, {"boot": "another"}], ids=["tag", "length", "boot"]
)
def test_a_file_of_another_version_is_removed(bench: Bench, asked: dict[str, str]) -> None:
    bench.leave_behind(b"abc")
    assert bench.find(**asked) is None  # type: ignore[arg-type]
    assert bench.files() == []


def test_a_file_that_was_cut_short_does_not_verify(bench: Bench) -> None:
    os.truncate(bench.leave_behind(b"abc"), 2)
    assert bench.find() is None
    assert bench.files() == []


def test_half_a_file_is_not_used(bench: Bench) -> None:
    bench.leave_behind(b"abc", whole=False)
    assert bench.find() is None
    assert bench.files() == []


def test_other_objects_files_are_left_alone(bench: Bench) -> None:
    path = bench.leave_behind(b"abc")
    assert bench.folder.find(url=URL + "2", tag='"1"', size_bytes=3, until=bench.now) is None
    assert bench.files() == [path]


def test_dead_workers_files_make_way_oldest_first(bench: Bench) -> None:
    paths = sorted(bench.leave_behind(b"x" * 20) for _ in range(3))
    for age_s, path in enumerate(paths):  # against the order of their names
        os.utime(path, (bench.now - age_s,) * 2)
    bench.create(20)
    assert [path.exists() for path in paths] == [True, True, False]


def test_what_nobody_asked_for_in_time_and_what_is_no_whole_file_is_removed_at_start(bench: Bench) -> None:
    half = bench.leave_behind(b"half", whole=False)
    whole = bench.leave_behind(b"whole")
    old = bench.leave_behind(b"old")
    os.utime(old, (bench.now - LEFTOVER_S_MAX - 1.0,) * 2)
    used = bench.create(1)
    bench.another().create(1, until=bench.now)
    assert [path.exists() for path in (half, whole, old, used.body.path)] == [False, True, False, True]


def test_other_peoples_files_are_never_touched(bench: Bench) -> None:
    bench.create(1)
    foreign = bench.path / "notes.txt"
    foreign.write_bytes(b"x" * 200)
    os.utime(foreign, (0.0, 0.0))
    bench.another().create(69, until=bench.now)
    assert foreign.exists()


def test_a_folder_of_somebody_else_is_not_used(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    bench.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="belongs to another user"):
        bench.create(1)


def test_bodies_are_for_their_owner_alone(bench: Bench) -> None:
    path = bench.create(1).body.path
    assert path.stat().st_mode & 0o077 == 0
    assert bench.path.stat().st_mode & 0o077 == 0


def test_what_is_kept_for_one_goes_to_the_next_when_the_file_ends(bench: Bench) -> None:
    growing = bench.folder.create_empty(until=bench.now)
    assert growing.overrun(bench.path / OVERRUN)
    assert growing.overrun(bench.path / OVERRUN), "once taken it is kept"
    growing.remove()
    assert bench.folder.create_empty(until=bench.now).overrun(bench.path / OVERRUN)
