"""The cached client: built once, renewed ahead of time, and never by a crowd."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from forwarder.aws_errors import NoClientError
from forwarder.cloud.refreshing import (
    BACKOFF_SERVING,
    BACKOFF_STARVED,
    DISCARD_AGE_MIN_S,
    LASTING_FAILURES,
    Built,
    RefreshingClient,
)

START = 1_000_000.0
HOUR_S = 3600.0


class Killed(BaseException):
    """Stands for GreenletExit and gevent.Timeout."""


class Sts:
    """A build step: counts its calls, fails on demand, and tells the expiry it gave last."""

    def __init__(self, *, life_s: float | None = HOUR_S) -> None:
        self.now = START
        self.life_s = life_s
        self.calls = 0
        self.error: BaseException | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now

    def build(self) -> Built[str]:
        self.calls += 1
        number = self.calls
        self.meanwhile()
        if self.error is not None:
            raise self.error
        return Built(f"client {number}", None if self.life_s is None else self.now + self.life_s)


def clients_of(sts: Sts) -> RefreshingClient[str]:
    return RefreshingClient(
        service="firehose", build=sts.build, clock=sts.clock, uniform=lambda _low, high: high
    )


def test_a_thousand_records_of_a_hundred_threads_build_one_client() -> None:
    sts = Sts()
    clients = clients_of(sts)
    at_once = threading.Barrier(100)

    def ten_records(_: int) -> list[str]:
        at_once.wait()
        return [clients.get() for _ in range(10)]

    with ThreadPoolExecutor(100) as threads:
        used = [client for some in threads.map(ten_records, range(100)) for client in some]

    assert used == ["client 1"] * 1000
    assert sts.calls == 1


def test_a_hundred_greenlets_build_one_client_while_the_build_waits_for_sts() -> None:
    program = """
        from gevent import monkey; monkey.patch_all()
        import gevent, time
        from forwarder.cloud.refreshing import Built, RefreshingClient

        calls = []
        def build():
            calls.append(1)
            time.sleep(0.05)  # yields, as a call to STS does
            return Built(object(), time.time() + 3600)

        clients = RefreshingClient(service="firehose", build=build)
        def ten_records():
            used = []
            for _ in range(10):
                used.append(clients.get())
                gevent.sleep(0)
            return used
        greenlets = [gevent.spawn(ten_records) for _ in range(100)]
        gevent.joinall(greenlets, timeout=10)
        used = [client for greenlet in greenlets for client in greenlet.value]
        print(len(used), len(set(map(id, used))), len(calls))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["1000", "1", "1"], done.stderr


@pytest.mark.parametrize(
    ("life_s", "lead_s"), [(HOUR_S, 600), (12 * HOUR_S, 600), (900, 150), (60, 10), (3, 0.5)]
)
def test_a_client_is_rebuilt_ten_minutes_or_a_sixth_of_its_life_before_it_expires(
    life_s: float, lead_s: float
) -> None:
    sts = Sts(life_s=life_s)
    clients = clients_of(sts)
    clients.get()
    sts.now = START + life_s - lead_s - 0.01
    assert clients.get() == "client 1"
    sts.now = START + life_s - lead_s + 0.01
    assert clients.get() == "client 2"


def test_ambient_credentials_are_never_rebuilt() -> None:
    sts = Sts(life_s=None)
    clients = clients_of(sts)
    clients.get()
    sts.now += 1000 * HOUR_S
    assert clients.get() == "client 1"


def test_the_record_after_a_failed_first_build_tries_again() -> None:
    sts = Sts()
    clients = clients_of(sts)
    sts.error = OSError("STS is down")
    with pytest.raises(NoClientError) as raised:
        clients.get()
    assert raised.value.__cause__ is sts.error
    sts.error = None
    assert clients.get() == "client 2"


def test_builds_that_keep_failing_are_spaced_and_records_meanwhile_fail_at_once() -> None:
    sts = Sts()
    clients = clients_of(sts)
    sts.error = OSError("STS is down")
    for _ in range(1000):
        with pytest.raises(NoClientError):
            clients.get()
    assert sts.calls == 2
    for _ in range(1000):
        sts.now += 0.1
        with pytest.raises(NoClientError):
            clients.get()
    assert sts.calls <= 2 + 4 + 100 / BACKOFF_STARVED.max_s
    sts.error = None
    sts.now += BACKOFF_STARVED.max_s
    assert clients.get() == f"client {sts.calls}"


def test_who_finds_no_client_is_told_when_to_come_back_and_when_not_to_wait() -> None:
    sts = Sts()
    clients = clients_of(sts)
    sts.error = OSError("STS is down")
    told = []
    for _ in range(LASTING_FAILURES):
        with pytest.raises(NoClientError) as raised:
            clients.get()
        told.append((raised.value.retry_in_s, raised.value.lasting))
        sts.now += raised.value.retry_in_s
    assert told == [(0.0, False), (2.0, False), (4.0, False), (5.0, True)]
    assert sts.calls == LASTING_FAILURES

    sts.now -= 2
    with pytest.raises(NoClientError) as raised:
        clients.get()  # without a build
    assert (raised.value.retry_in_s, raised.value.lasting) == (2.0, True)
    assert raised.value.__cause__ is sts.error
    assert sts.calls == LASTING_FAILURES

    sts.now += 2
    sts.error = None
    clients.get()
    sts.now += HOUR_S
    sts.error = OSError("STS is down again")
    with pytest.raises(NoClientError) as raised:
        clients.get()
    assert (raised.value.retry_in_s, raised.value.lasting) == (0.0, False)


def test_a_failed_rebuild_goes_on_with_the_old_client_until_it_really_expires() -> None:
    sts = Sts()
    clients = clients_of(sts)
    clients.get()
    sts.error = OSError("STS is down")
    sts.now = START + HOUR_S - 600
    used = set()
    while sts.now < START + HOUR_S:
        used.add(clients.get())
        sts.now += 0.5
    assert used == {"client 1"}
    # 1 + 2 + 4 + 8 + 16 seconds, then one call every 30.
    assert sts.calls - 1 <= 5 + 600 / BACKOFF_SERVING.max_s
    with pytest.raises(NoClientError):
        clients.get()


def test_at_the_moment_of_expiry_a_build_is_tried_whatever_the_backoff_says() -> None:
    sts = Sts(life_s=60)
    clients = clients_of(sts)
    clients.get()
    sts.error = OSError("STS is down")
    for at in (50.0, 51.0, 53.0, 57.0):
        sts.now = START + at
        assert clients.get() == "client 1"
    assert sts.calls == 5
    sts.error = None
    sts.now = START + 60
    assert clients.get() == "client 6"


def test_expiry_moves_only_together_with_the_client() -> None:
    sts = Sts()
    clients = clients_of(sts)
    clients.get()
    sts.now = START + HOUR_S - 600
    sts.error = OSError("STS is down")
    clients.get()
    sts.now = START + HOUR_S + 1
    with pytest.raises(NoClientError):
        clients.get()  # a failed build that had moved the expiry would still serve client 1
    sts.error = None
    sts.now += BACKOFF_STARVED.max_s
    client = clients.get()
    sts.now += HOUR_S - 601
    assert clients.get() == client


def test_others_use_the_old_client_while_one_rebuilds() -> None:
    sts = Sts()
    clients = clients_of(sts)
    clients.get()
    sts.now = START + HOUR_S - 1
    seen_by_others: list[str] = []
    sts.meanwhile = lambda: seen_by_others.append(clients.get())
    assert clients.get() == "client 2"
    assert seen_by_others == ["client 1"]


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_wait_for_a_build_share_its_outcome(fails: bool) -> None:
    sts = Sts()
    clients = clients_of(sts)
    building, release = threading.Event(), threading.Event()

    def block() -> None:
        building.set()
        release.wait(5)

    sts.meanwhile = block
    sts.error = OSError("STS is down") if fails else None

    def record(_: int) -> str:
        try:
            return clients.get()
        except NoClientError:
            return "none"

    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(record, 0)
        building.wait(5)
        others = [threads.submit(record, number) for number in range(1, 20)]
        while not waiting_for(clients, 19):
            release.wait(0.001)
        release.set()
        outcomes = {future.result() for future in [first, *others]}

    assert outcomes == {"none" if fails else "client 1"}
    assert sts.calls == 1


def waiting_for(clients: RefreshingClient[str], number: int) -> bool:
    """Return whether ``number`` threads wait for the build on its way."""
    attempt = clients._attempt
    assert attempt is not None
    return len(attempt.done._cond._waiters) >= number  # type: ignore[attr-defined]


def test_a_builder_that_is_killed_leaves_the_build_to_the_next_one() -> None:
    sts = Sts()
    clients = clients_of(sts)
    sts.error = Killed()
    with pytest.raises(Killed):
        clients.get()
    sts.error = None
    assert clients.get() == "client 2"


def test_credentials_that_have_expired_at_birth_count_as_a_failed_build() -> None:
    sts = Sts(life_s=-1)
    clients = clients_of(sts)
    for _ in range(100):
        with pytest.raises(NoClientError):
            clients.get()
    assert sts.calls == 2


def test_a_hundred_reports_of_one_refused_client_cause_one_build() -> None:
    sts = Sts()
    clients = clients_of(sts)
    refused = clients.get()
    for _ in range(100):
        sts.now += DISCARD_AGE_MIN_S
        clients.discard(refused)
        assert clients.get() == "client 2"
    assert sts.calls == 2


def test_a_client_that_is_refused_from_birth_is_not_rebuilt_for_each_record() -> None:
    sts = Sts()
    clients = clients_of(sts)
    for _ in range(100):
        clients.discard(clients.get())
        sts.now += 0.05
    assert sts.calls == 1


def test_a_client_with_ambient_credentials_is_not_discarded() -> None:
    sts = Sts(life_s=None)
    clients = clients_of(sts)
    client = clients.get()
    sts.now += HOUR_S
    clients.discard(client)
    assert clients.get() == client


def test_each_build_and_each_failure_is_one_line_of_log_without_the_reason_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sts = Sts()
    clients = clients_of(sts)
    with caplog.at_level(logging.INFO):
        clients.get()
        sts.now += HOUR_S - 500
        sts.error = OSError("secret reason")
        clients.get()
        sts.error = None
        sts.now += 1
        clients.get()
        sts.now += HOUR_S - 500
        sts.error = OSError("secret reason")
        clients.get()
    assert caplog.messages == [
        "aws_client_built service=firehose builds=1 expires_in_s=3600",
        "aws_client_build_failed service=firehose retry_in_s=1.0 error=OSError",
        "aws_client_built service=firehose builds=2 expires_in_s=3600",
        "aws_client_build_failed service=firehose retry_in_s=1.0 error=OSError",
    ]
