"""The use case against fakes: no sockets, no sleeping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from forwarder.forwarding.errors import (
    Expired,
    ForwarderError,
    InferenceBusy,
    InferenceTimeout,
    InferenceUnreachable,
)
from forwarder.forwarding.forwarder import Forwarder, GoBack, TaskCall
from forwarder.forwarding.payload import ResultShape
from forwarder.forwarding.ports import Answer, Spool, StagedBody
from forwarder.forwarding.retry import RetryPolicy
from forwarder.telemetry.metrics import ProcessMetrics

T = TypeVar("T")
SPOOL = cast(Spool, object())
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.moment = START
        self.slept_s: list[float] = []

    def now(self) -> datetime:
        return self.moment

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.moment += timedelta(seconds=seconds)


class Server:
    """Answers from a script; the last line repeats."""

    def __init__(self, *script: Answer | ForwarderError) -> None:
        self.script = list(script)
        self.bodies: list[bytes | StagedBody] = []
        self.spools: list[Spool | None] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.within_s: list[float | None] = []

    def predict(
        self,
        body: bytes | StagedBody,
        *,
        headers: Mapping[str, str],
        within_s: float | None = None,
        spool: Spool | None = None,
    ) -> Answer:
        self.bodies.append(body)
        self.spools.append(spool)
        self.meanwhile()
        self.within_s.append(within_s)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, ForwarderError):
            raise step
        return step


class Objects:
    """What is behind URLs; counts what is staged now. An ObjectStore and a Staging."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.staged = 0
        self.within_s: list[float | None] = []

    @contextmanager
    def fetch(self, url: str, *, within_s: float | None = None) -> Iterator[bytes | StagedBody]:
        self.within_s.append(within_s)
        with self._staged(self.held[url]) as body:
            yield body

    def spool(self) -> AbstractContextManager[Spool]:
        return self._staged(SPOOL)

    def write(self, url: str, body: bytes | StagedBody) -> None:
        self.held[url] = body

    @contextmanager
    def _staged(self, what: T) -> Iterator[T]:
        self.staged += 1
        try:
            yield what
        finally:
            self.staged -= 1


def answer(status: int = 200, body: bytes = b'{"y":2}', **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, body=body, headers=named, elapsed_s=0.5)


class Bench:
    def __init__(self, *script: Answer | ForwarderError, max_retries: int = 3) -> None:
        self.clock, self.server, self.objects = Clock(), Server(*script), Objects()
        self.metrics = ProcessMetrics()
        self.forwarder = Forwarder(
            server=self.server,
            staging=self.objects,
            objects=self.objects,
            metrics=self.metrics,
            shape=ResultShape(),
            policy=RetryPolicy(slot_budget_s=60.0, max_retries=max_retries),
            unwrap=True,
            now=self.clock.now,
            sleep=self.clock.sleep,
            uniform=lambda low, high: high,
        )

    def forward(self, payload: Any = None, **call: Any) -> Any:
        payload = {"args": {"x": 1}} if payload is None else payload
        return self.forwarder.forward(TaskCall(task_id="t", payload=payload, **call))


def test_a_task_is_unwrapped_sent_and_wrapped() -> None:
    bench = Bench(answer())
    assert bench.forward() == {"result": {"y": 2}, "status_code": 200}
    assert bench.server.bodies == [b'{"x":1}']
    assert bench.metrics.snapshot()["forwarder_inference_seconds{status=200}_count"] == 1


@pytest.mark.parametrize("status", [400, 404, 422, 500, 502])
def test_an_error_status_is_a_result_and_is_not_tried_again(status: int) -> None:
    bench = Bench(answer(status, b'{"detail":"no"}'))
    assert bench.forward() == {"result": {"detail": "no"}, "status_code": status}
    assert len(bench.server.bodies) == 1


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_busy_server_is_asked_again_in_the_slot(status: int) -> None:
    bench = Bench(answer(status), answer(status), answer())
    assert bench.forward()["status_code"] == 200
    assert bench.clock.slept_s == [0.25, 0.5]


def test_retry_after_is_honoured() -> None:
    bench = Bench(answer(503, retry_after="20"), answer())
    bench.forward()
    assert bench.clock.slept_s == [20.25]


def test_a_server_that_is_gone_is_asked_again_then_the_task_goes_back() -> None:
    bench = Bench(InferenceUnreachable("gone"))
    with pytest.raises(GoBack) as caught:
        bench.forward()
    assert caught.value.error.code == "inference_unreachable"
    assert sum(bench.clock.slept_s) == pytest.approx(60.0)


def test_a_task_that_went_back_often_enough_fails_with_the_last_error() -> None:
    with pytest.raises(InferenceBusy):
        Bench(answer(503)).forward(retries=3)


def test_a_timeout_is_not_tried_again_because_the_server_may_still_be_at_it() -> None:
    bench = Bench(InferenceTimeout("slow"))
    with pytest.raises(InferenceTimeout):
        bench.forward()
    assert bench.clock.slept_s == []


def test_an_expired_task_never_reaches_the_server() -> None:
    bench = Bench(answer())
    with pytest.raises(Expired):
        bench.forward(expires="2026-01-02T03:04:04+00:00")
    assert bench.server.bodies == []


def test_a_task_that_expires_while_it_waits_is_given_up() -> None:
    bench = Bench(answer(503, retry_after="20"), answer())
    with pytest.raises(Expired):
        bench.forward(expires="2026-01-02T03:04:15+00:00")
    assert len(bench.server.bodies) == 1
    assert bench.clock.slept_s == [10.0]  # not the twenty that the server asked for


def test_each_call_ends_when_the_task_expires() -> None:
    bench = Bench(answer(503, retry_after="4"), answer())
    bench.forward(expires="2026-01-02T03:04:15+00:00")
    assert bench.server.within_s == [10.0, 5.75]


def test_a_task_that_never_expires_has_no_such_bound() -> None:
    bench = Bench(answer())
    bench.forward()
    assert bench.server.within_s == [None]


def test_a_task_that_expires_in_a_call_is_not_tried_again() -> None:
    bench = Bench(Expired("while it ran"))
    with pytest.raises(Expired):
        bench.forward(expires="2026-01-02T03:04:15+00:00")
    assert bench.clock.slept_s == []


def test_a_body_by_reference_is_sent_as_it_is() -> None:
    bench = Bench(answer())
    bench.objects.held["s3://bucket/key"] = b'{"big": true}'
    bench.forward({"url": "s3://bucket/key"})
    assert bench.server.bodies == [b'{"big": true}']


@pytest.mark.parametrize("steps", [[answer()], [answer(503), InferenceUnreachable("gone"), answer()]])
def test_a_large_body_is_there_until_the_task_is_done(steps: list[Answer | ForwarderError]) -> None:
    bench, staged = Bench(*steps), []
    bench.objects.held["s3://bucket/key"] = StagedBody(path=Path("large"), size_bytes=9)
    bench.server.meanwhile = lambda: staged.append(bench.objects.staged)
    bench.forward({"url": "s3://bucket/key"})
    assert bench.server.bodies == [bench.objects.held["s3://bucket/key"]] * len(steps)
    assert staged == [1] * len(steps)
    assert bench.objects.staged == 0


def test_nothing_stays_of_a_large_body_when_its_task_goes_back() -> None:
    bench = Bench(InferenceUnreachable("gone"))
    bench.objects.held["s3://bucket/key"] = b"{}"
    with pytest.raises(GoBack):
        bench.forward({"url": "s3://bucket/key", "destination_path": "s3://bucket/out"})
    assert bench.objects.staged == 0


def test_a_body_is_fetched_for_no_longer_than_the_task_has() -> None:
    bench = Bench(answer())
    bench.objects.held["s3://bucket/key"] = b"{}"
    bench.forward({"url": "s3://bucket/key"})
    bench.forward({"url": "s3://bucket/key"}, expires="2026-01-02T03:04:15+00:00")
    assert bench.objects.within_s == [None, 10.0]


def test_only_an_answer_with_a_destination_may_be_too_large_for_memory() -> None:
    bench = Bench(answer())
    bench.forward({"args": 1})
    bench.forward({"args": 1, "destination_path": "s3://bucket/out"})
    assert bench.server.spools == [None, SPOOL]


def test_a_large_answer_goes_to_its_destination_from_the_disk() -> None:
    staged = StagedBody(path=Path("answer"), size_bytes=9)
    bench = Bench(replace(answer(body=b""), staged=staged))
    result = bench.forward({"args": 1, "destination_path": "s3://bucket/out"})
    assert result == {"result": {"destination_path": "s3://bucket/out"}, "status_code": 200}
    assert bench.objects.held == {"s3://bucket/out": staged}
    assert bench.objects.staged == 0


def test_a_destination_gets_the_raw_response_and_the_result_its_reference() -> None:
    bench = Bench(answer(body=b"not json at all"))
    result = bench.forward({"args": 1, "destination_path": "s3://bucket/out"})
    assert result == {"result": {"destination_path": "s3://bucket/out"}, "status_code": 200}
    assert bench.objects.held == {"s3://bucket/out": b"not json at all"}


def test_an_error_answer_is_not_written_to_the_destination() -> None:
    bench = Bench(answer(500, b"oops"))
    assert bench.forward({"args": 1, "destination_path": "s3://bucket/out"})["status_code"] == 500
    assert bench.objects.held == {}


@pytest.mark.parametrize(
    ("arrival", "waited_s"), [(START - timedelta(seconds=9), 9.0), ("never", None), (None, None)]
)
def test_the_wait_is_told_where_it_can_be(arrival: Any, waited_s: float | None) -> None:
    assert Bench(answer()).forwarder.waited_s(arrival) == waited_s
