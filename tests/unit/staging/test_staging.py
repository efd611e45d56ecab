"""Which body goes by way of memory and which by way of the disk; and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from forwarder.forwarding.errors import Expired, InputUnavailable, InvalidPayload
from forwarder.forwarding.ports import StagedBody
from forwarder.staging.folder import StagingFolder, StagingFull
from forwarder.staging.spool import STEP_BYTES, NotStaged
from forwarder.staging.staging import Staging
from forwarder.staging.threshold import Threshold
from tests.unit.staging.remotes import FakeSource

URL = "s3://bucket/key"
LARGE = os.urandom(300_000)


class Killed(BaseException):
    """What a greenlet that is killed sees: no Exception."""


class Bench:
    """Half a megabyte of disk for inputs; bodies above 1000 bytes go there."""

    def __init__(self, parent: Path) -> None:
        self.now = 0.0
        self.source = FakeSource(LARGE)
        self.parent = parent
        self.folder = StagingFolder(
            parent=parent,
            bytes_max=500_000 + 2 * STEP_BYTES,
            overrun_bytes=2 * STEP_BYTES,
            boot="boot",
            clock=lambda: self.now,
            monotonic=lambda: self.now,
            sleep=self._sleep,
        )
        self.threshold = Threshold(1000)
        self.staging = self.another()

    def another(self) -> Staging:
        return Staging(
            folder=self.folder,
            sources={"s3": self.source},
            threshold=self.threshold,
            input_bytes_max=400_000,
            answer_bytes_max=2 * STEP_BYTES,
            timeout_s=60.0,
            monotonic=lambda: self.now,
            sleep=self._sleep,
            uniform=lambda low, high: high,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def files(self) -> list[Path]:
        return [path for path in self.parent.rglob("*") if path.is_file() and path.suffix != ".lock"]

    def fetch(self, *, within_s: float | None = None) -> bytes:
        with self.staging.fetch(URL, within_s=within_s) as body:
            assert isinstance(body, StagedBody)
            return body.path.read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("says_size", [True, False])
def test_a_small_object_stays_in_memory(bench: Bench, says_size: bool) -> None:
    bench.source.content, bench.source.says_size = LARGE[:1000], says_size
    with bench.staging.fetch(URL) as body:
        assert body == LARGE[:1000]
        assert bench.source.connections == 0
    assert bench.files() == []


@pytest.mark.parametrize("tag", ['"1"', None])
@pytest.mark.parametrize("says_size", [True, False])
def test_a_large_object_is_a_file_for_as_long_as_its_task_runs(
    bench: Bench, says_size: bool, tag: str | None
) -> None:
    bench.source.says_size, bench.source.tag = says_size, tag
    with bench.staging.fetch(URL) as body:
        assert isinstance(body, StagedBody)
        assert body.path.read_bytes() == LARGE
        assert body.size_bytes == len(LARGE)
        assert bench.source.connections == 0
    assert bench.files() == []


@pytest.mark.parametrize("then", [0, 10**9])
def test_a_threshold_that_moves_while_an_object_is_read_cuts_nothing_off(bench: Bench, then: int) -> None:
    bench.source.says_size = False

    def move() -> None:
        bench.threshold.bytes = then

    bench.source.on_read = move
    assert bench.fetch() == LARGE


def test_what_was_read_is_told_to_the_threshold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(bench.threshold, "saw", seen.append)
    bench.fetch()
    bench.source.content = b"small"
    with bench.staging.fetch(URL):
        pass
    assert seen == [len(LARGE), 5]


def test_an_object_past_the_bound_takes_no_room(bench: Bench) -> None:
    bench.source.content = b"x" * 400_001
    with pytest.raises(InvalidPayload, match="more than 400000 bytes"):
        bench.fetch()
    assert bench.files() == []
    assert bench.source.connections == 0


@pytest.mark.parametrize("url", ["https://host/x", "http://host/x", "file:///etc/passwd", "key", ""])
def test_a_scheme_that_is_not_allowed_is_refused(bench: Bench, url: str) -> None:
    with pytest.raises(InvalidPayload, match="must be s3://"), bench.staging.fetch(url):
        pass


@pytest.mark.parametrize("error", [Killed(), InputUnavailable("gone")])
def test_a_download_that_ends_early_leaves_neither_file_nor_connection(
    bench: Bench, error: BaseException
) -> None:
    reads = iter([None, None, error])

    def on_read() -> None:
        if step := next(reads):
            assert bench.files(), "in the middle of it"
            raise step

    bench.source.on_read = on_read
    with pytest.raises(type(error)):
        bench.fetch()
    assert bench.files() == []
    assert bench.source.connections == 0


def test_a_task_that_is_killed_later_leaves_no_file(bench: Bench) -> None:
    with contextlib.suppress(Killed), bench.staging.fetch(URL):
        assert len(bench.files()) == 1
        raise Killed
    assert bench.files() == []


@pytest.mark.parametrize("tag", ['"1"', None])
@pytest.mark.parametrize("says_size", [True, False])
def test_while_the_folder_is_full_no_connection_is_held_and_then_the_download_goes_on(
    bench: Bench, says_size: bool, tag: str | None
) -> None:
    bench.source.says_size, bench.source.tag = says_size, tag
    other = bench.folder.create(400_000, until=0.0)
    connections = []

    def sleep(seconds: float) -> None:
        bench.now += seconds
        if seconds and bench.now < 5.0:
            connections.append(bench.source.connections)
        elif seconds:
            other.remove()

    bench.folder._sleep = sleep
    assert bench.fetch() == LARGE
    assert set(connections) == {0}


def test_a_task_that_expires_while_it_waits_for_room_has_expired(bench: Bench) -> None:
    bench.folder.create(400_000, until=0.0)
    with pytest.raises(Expired):
        bench.fetch(within_s=5.0)
    assert bench.now == pytest.approx(5.0)
    assert bench.source.connections == 0


def test_a_task_that_finds_no_room_in_its_time_goes_back(bench: Bench) -> None:
    bench.folder.create(400_000, until=0.0)
    with pytest.raises(StagingFull):
        bench.fetch(within_s=1000.0)
    assert bench.now == pytest.approx(60.0)


def test_an_object_that_grew_while_it_waited_takes_no_more_than_it_was_given(bench: Bench) -> None:
    bench.source.tag = None
    other = bench.folder.create(400_000, until=0.0)

    def sleep(seconds: float) -> None:
        bench.now += seconds
        bench.source.content = LARGE + b"more"
        other.remove()

    bench.folder._sleep = sleep
    with pytest.raises(InputUnavailable, match="changed"):
        bench.fetch()
    assert bench.files() == []


def test_a_dead_workers_file_is_used_instead_of_a_download(bench: Bench) -> None:
    file = bench.folder.create(len(LARGE), until=0.0, url=URL, tag='"1"')
    file.write(LARGE)
    file.finish()
    os.close(file._open)  # as the kernel does when a process is killed
    bench.source.on_read = lambda: pytest.fail("it was read again")
    assert bench.fetch() == LARGE
    assert bench.files() == []
    assert bench.source.connections == 0


def test_an_answer_is_written_to_a_file_that_grows(bench: Bench) -> None:
    with bench.staging.spool() as spool:
        spool.begin()
        spool.write(LARGE, within_s=1.0)
        spool.write(bytearray(LARGE), within_s=1.0)
        staged = spool.finish()
        assert staged.path.read_bytes() == 2 * LARGE
        assert staged.size_bytes == 2 * len(LARGE)
    assert bench.files() == []


def test_nothing_of_an_answer_that_broke_off_is_in_the_next(bench: Bench) -> None:
    with bench.staging.spool() as spool:
        spool.begin()
        spool.write(LARGE, within_s=1.0)
        spool.begin()
        spool.write(b"new", within_s=1.0)
        assert spool.finish().path.read_bytes() == b"new"
        assert len(bench.files()) == 1


def test_an_answer_that_finds_no_room_in_time_is_late(bench: Bench) -> None:
    with bench.staging.spool() as first, bench.staging.spool() as second:
        first.write(b"x", within_s=1.0)
        with pytest.raises(TimeoutError):
            second.write(b"x", within_s=7.0)
        assert bench.now == pytest.approx(7.0)


def test_a_disk_that_refuses_is_not_the_inference_servers_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError would be taken for a broken connection, and the answer be paid for again."""

    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    with bench.staging.spool() as spool:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(NotStaged) as raised:
            spool.write(b"x", within_s=1.0)
    assert isinstance(raised.value.__cause__, OSError)


def test_an_answer_that_was_never_written_needs_no_file(bench: Bench) -> None:
    with bench.staging.spool() as spool:
        spool.begin()
    assert bench.files() == []
