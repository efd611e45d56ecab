"""Records of many tasks in one call: what shares it, what a failure costs whom, and what is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from forwarder.hooks import record_batches
from forwarder.hooks.logging import Verdict, judge
from forwarder.hooks.record_batches import RecordBatches, Sent


class Killed(BaseException):
    """Stands for gevent's GreenletExit."""


class Firehose:
    """A client that holds its first call until it is let go, and answers with ``refused`` and ``error``."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.alone: list[str] = []
        self.error: BaseException | None = None
        self.refused: dict[str, str] = {}
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def get(self) -> Firehose:
        return self

    def discard(self, client: Any) -> None:
        raise AssertionError("nothing here has expired")

    def put_record_batch(self, *, DeliveryStreamName: str, Records: list[Any]) -> dict[str, Any]:  # noqa: N803
        data = [each["Data"].decode() for each in Records]
        self.batches.append(data)
        self.entered.set()
        assert self.go_on.wait(10)
        error, self.error = self.error, None
        if error is not None:
            raise error
        answers = [
            {"ErrorCode": self.refused[each]} if each in self.refused else {"RecordId": "1"} for each in data
        ]
        return {"FailedPutCount": len(self.refused), "RequestResponses": answers}

    def put_record(self, *, DeliveryStreamName: str, Record: Any) -> None:  # noqa: N803
        self.alone.append(Record["Data"].decode())


class Scene:
    """Several callers; the first one's call is held until all the others wait."""

    def __init__(self, linger_s: float | None = 0.05) -> None:
        self.firehose = Firehose()
        self.pauses_s: list[float] = []
        self.batches = RecordBatches(
            clients=self.firehose,
            stream="stream",
            linger_s=linger_s,
            monotonic=lambda: 7.0,
            sleep=self.pauses_s.append,
        )
        self.sent: dict[str, Sent | BaseException] = {}

    def put(self, name: str) -> None:
        try:
            self.sent[name] = self.batches.put(name.encode())
        except Killed as error:
            self.sent[name] = error

    def put_together(self, first: str, *others: str) -> None:
        self.firehose.go_on.clear()
        threads = [_started(lambda: self.put(first))]
        assert self.firehose.entered.wait(10)
        for name in others:
            waiting = len(self.batches._waiting)
            threads.append(_started(lambda name=name: self.put(name)))  # type: ignore[misc]
            while len(self.batches._waiting) == waiting:
                threading.Event().wait(0.001)
        self.firehose.go_on.set()
        for thread in threads:
            thread.join(10)

    def errors(self) -> dict[str, Any]:
        return {name: getattr(sent, "error", sent) for name, sent in self.sent.items()}


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_what_comes_during_a_call_shares_the_next_which_begins_a_pause_after_it() -> None:
    scene = Scene()
    scene.put_together("a", "b", "c", "d")
    assert scene.firehose.batches == [["a"], ["b", "c", "d"]]
    assert scene.errors() == dict.fromkeys("abcd")
    assert scene.pauses_s == pytest.approx([0.0, 0.05]), "a record that comes alone does not wait"


def test_a_record_that_firehose_refuses_in_a_batch_is_its_own_callers_alone() -> None:
    scene = Scene()
    scene.firehose.refused = {"c": "ServiceUnavailableException"}
    scene.put_together("a", "b", "c")
    errors = scene.errors()
    assert errors["b"] is None
    assert judge(errors["c"]) is Verdict.RETRY


def test_a_call_that_fails_is_told_to_all_of_its_callers() -> None:
    scene = Scene()
    scene.firehose.error = error = ClientError({"Error": {"Code": "ThrottlingException"}}, "PutRecordBatch")
    scene.put("a")
    assert scene.errors() == {"a": error}
    scene.put("b")
    assert scene.errors()["b"] is None


def test_a_caller_that_is_killed_in_the_call_leaves_the_records_to_the_others() -> None:
    scene = Scene()
    scene.firehose.error = Killed()
    scene.put_together("a", "b")
    assert isinstance(scene.sent["a"], Killed)
    assert scene.errors()["b"] is None
    assert scene.firehose.batches == [["a"], ["a", "b"]]


def test_a_role_that_allows_single_records_alone_gets_them_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.firehose.error = ClientError({"Error": {"Code": "AccessDeniedException"}}, "PutRecordBatch")
    scene.put_together("a", "b", "c")
    scene.put("d")
    assert sorted(scene.firehose.alone) == ["a", "b", "c", "d"]
    assert len(scene.firehose.batches) == 1
    assert scene.errors() == dict.fromkeys("abcd")
    [line] = caplog.messages
    assert "firehose:PutRecordBatch" in line


def test_without_batches_each_record_goes_by_itself() -> None:
    scene = Scene(linger_s=None)
    scene.put("a")
    assert (scene.firehose.alone, scene.firehose.batches) == (["a"], [])


def test_a_batch_keeps_firehoses_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (record_batches.RECORDS_MAX, record_batches.BYTES_MAX) == (500, 3_000_000)
    monkeypatch.setattr(record_batches, "RECORDS_MAX", 3)
    monkeypatch.setattr(record_batches, "BYTES_MAX", 10)
    scene = Scene()
    scene.put_together("-", "aaaa", "bbbb", "cccc", "d", "e", "f")
    assert [len(batch) for batch in scene.firehose.batches[1:]] == [2, 3, 1]
    assert json.dumps(scene.errors()).count("null") == 7
