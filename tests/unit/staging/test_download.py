"""A download over connections that break off, objects that change, and time that runs out."""

from __future__ import annotations

import pytest

from forwarder.forwarding.errors import Expired, ForwarderError, InputUnavailable, InvalidPayload
from forwarder.staging.download import BROKEN_MAX, PIECE_BYTES, Download
from tests.unit.staging.remotes import FakeSource

CONTENT = bytes(range(256)) * 1024  # four pieces
URL = "s3://bucket/key"


class Bench:
    def __init__(self, source: FakeSource, *, bytes_max: int = len(CONTENT), expires: bool = False) -> None:
        self.now = 0.0
        self.slept_s: list[float] = []
        self.source = source
        self.download = Download(
            source=source,
            url=URL,
            bytes_max=bytes_max,
            until=60.0,
            expires=expires,
            monotonic=lambda: self.now,
            sleep=self._sleep,
            uniform=lambda low, high: high,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept_s.append(seconds)

    def read(self) -> bytes:
        return b"".join(iter(self.download.read, b""))


def again() -> InputUnavailable:
    return InputUnavailable("later", again=True)


def test_an_object_is_read_in_pieces_and_lets_others_run_between_them() -> None:
    bench = Bench(FakeSource(CONTENT))
    assert len(bench.download.read()) == PIECE_BYTES
    assert bench.slept_s == [0]


def test_a_connection_that_breaks_off_is_followed_by_one_that_goes_on() -> None:
    bench = Bench(FakeSource(CONTENT, breaks=[100_000, 50_000]))
    assert bench.read() == CONTENT
    assert bench.source.opened == [(URL, 0, None), (URL, 100_000, '"1"'), (URL, 150_000, '"1"')]
    assert [seconds for seconds in bench.slept_s if seconds] == [0.5, 1.0]
    assert bench.source.connections == 1


def test_an_object_that_changed_meanwhile_is_not_put_together_from_two() -> None:
    source = FakeSource(CONTENT, breaks=[100])
    bench = Bench(source)
    bench.download.read()
    source.tag = '"2"'
    with pytest.raises(InputUnavailable, match="changed"):
        bench.download.read()


def test_an_object_without_a_tag_can_not_be_gone_on_with() -> None:
    bench = Bench(FakeSource(CONTENT, tag=None, breaks=[100]))
    with pytest.raises(InputUnavailable, match="broke off"):
        bench.read()


def test_but_it_can_be_begun_again_when_nothing_was_read() -> None:
    bench = Bench(FakeSource(CONTENT, tag=None, breaks=[again(), 0]))
    assert bench.read() == CONTENT


def test_an_object_that_is_not_there_is_not_asked_for_again() -> None:
    bench = Bench(FakeSource(breaks=[InputUnavailable("none", "NoSuchKey")]))
    with pytest.raises(InputUnavailable, match="none"):
        bench.download.open()
    assert len(bench.source.opened) == 1


def test_a_service_that_always_breaks_off_is_given_up() -> None:
    bench = Bench(FakeSource(CONTENT, breaks=[10] * 100))
    with pytest.raises(InputUnavailable, match="broke off"):
        bench.read()
    assert len(bench.source.opened) == BROKEN_MAX + 1
    assert bench.source.connections == 0


def test_a_failure_behind_the_last_byte_is_a_checksum_and_final() -> None:
    bench = Bench(FakeSource(CONTENT, breaks=[len(CONTENT)]))
    with pytest.raises(InputUnavailable):
        bench.read()
    assert len(bench.source.opened) == 1


def test_an_object_that_ends_early_is_none() -> None:
    bench = Bench(FakeSource(CONTENT))
    bench.download.open()
    bench.download.size_bytes = len(CONTENT) + 1
    with pytest.raises(InputUnavailable, match="broke off"):
        bench.read()


@pytest.mark.parametrize("says_size", [True, False])
def test_an_object_past_the_bound_is_refused(says_size: bool) -> None:
    bench = Bench(FakeSource(CONTENT, says_size=says_size), bytes_max=len(CONTENT) - 1)
    with pytest.raises(InvalidPayload, match=f"more than {len(CONTENT) - 1} bytes"):
        bench.read()
    assert (bench.download.read_bytes == 0) is says_size, "unread where the size is known"


@pytest.mark.parametrize(("expires", "error"), [(True, Expired), (False, InputUnavailable)])
def test_a_download_ends_with_its_time(expires: bool, error: type[ForwarderError]) -> None:
    bench = Bench(FakeSource(CONTENT), expires=expires)
    bench.download.read()
    bench.now = 60.0
    with pytest.raises(error):
        bench.download.read()


def test_waits_between_connections_end_with_the_time() -> None:
    bench = Bench(FakeSource(CONTENT, breaks=[again()] * 9))
    bench.now = 59.9
    with pytest.raises(InputUnavailable, match="in time"):
        bench.read()
    assert bench.slept_s == [pytest.approx(0.1)]


def test_a_download_that_waits_for_room_holds_no_connection_and_goes_on() -> None:
    bench = Bench(FakeSource(CONTENT))
    first = bench.download.read()
    bench.download.let_go()
    assert bench.source.connections == 0
    assert first + bench.read() == CONTENT
    assert bench.source.opened[1] == (URL, PIECE_BYTES, '"1"')


def test_without_a_tag_it_begins_anew_after_the_wait() -> None:
    bench = Bench(FakeSource(CONTENT, tag=None))
    bench.download.read()
    bench.download.let_go()
    assert bench.read() == CONTENT
