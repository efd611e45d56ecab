"""What ``check`` makes of the answers of result stores and Firehose, all of them fakes."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from forwarder.cli import probes
from forwarder.cli.findings import Finding, findings
from forwarder.cli.probes import probes_for
from forwarder.settings import Settings

ON_AWS = Settings(result_backend="s3://bucket/some/prefix/", hooks=("logging",), firehose_stream="stream")


class FakeAws:
    """One session whose every client it is itself; ``refuses`` maps an operation to AWS's error code."""

    exceptions = SimpleNamespace(NoSuchKey=KeyError)

    def __init__(self) -> None:
        self.refuses: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.put: list[str] = []
        self.loses = False
        self.missing: Exception = KeyError("missing")
        self.stream_status = "ACTIVE"

    def client(self, service: str, **options: Any) -> Any:
        self._answer(f"client {service}")
        return self

    def put_object(self, **options: Any) -> None:
        self._answer("PutObject")
        path = "{Bucket}/{Key}".format(**options)
        self.put.append(path)
        if not self.loses:
            self.objects[path] = options["Body"]

    def get_object(self, **options: Any) -> dict[str, Any]:
        self._answer("GetObject")
        path = "{Bucket}/{Key}".format(**options)
        if path not in self.objects:
            raise self.missing
        return {"Body": io.BytesIO(self.objects[path])}

    def delete_object(self, **options: Any) -> None:
        self._answer("DeleteObject")
        self.objects.pop("{Bucket}/{Key}".format(**options), None)

    def assume_role(self, **options: Any) -> Any:
        self._answer("AssumeRole")

    def describe_delivery_stream(self, **options: Any) -> dict[str, Any]:
        self._answer("DescribeDeliveryStream")
        return {"DeliveryStreamDescription": {"DeliveryStreamStatus": self.stream_status}}

    def _answer(self, operation: str) -> None:
        if code := self.refuses.get(operation):
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> FakeAws:
    fake = FakeAws()
    monkeypatch.setattr(probes, "_impatient_session", lambda: fake)
    return fake


def found(name: str, settings: Settings = ON_AWS) -> Finding:
    (finding,) = findings(probe for probe in probes_for(settings) if probe.name == name)
    return finding


def test_results_are_tried_with_an_object_under_the_prefix_that_is_gone_afterwards(aws: FakeAws) -> None:
    assert found("results") == Finding("results", True, "s3://bucket/some/prefix/ takes results")
    (written,) = aws.put
    assert written.startswith("bucket/some/prefix/forwarder-check-")
    assert aws.objects == {}


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket"])
def test_a_bucket_that_takes_no_object_is_a_failure(aws: FakeAws, code: str) -> None:
    aws.refuses["PutObject"] = code
    finding = found("results")
    assert not finding.ok
    assert code in finding.detail


def test_an_object_that_may_not_be_deleted_is_no_failure_and_is_named(aws: FakeAws) -> None:
    aws.refuses["DeleteObject"] = "AccessDenied"
    finding = found("results")
    assert finding.ok
    (left,) = aws.objects
    assert f"the object {left.rpartition('/')[2]} stays there: no s3:DeleteObject" in finding.detail


def test_an_object_that_may_not_be_read_is_a_failure_because_every_task_looks_for_its_result(
    aws: FakeAws,
) -> None:
    aws.refuses["GetObject"] = "AccessDenied"
    finding = found("results")
    assert not finding.ok
    assert "may not be read" in finding.detail
    assert "s3:GetObject" in finding.remedy
    assert aws.objects == {}


def test_a_bucket_that_calls_a_missing_object_denied_is_a_failure(aws: FakeAws) -> None:
    """S3's answer where s3:ListBucket is not allowed: no task would ever begin."""
    aws.missing = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetObject")
    finding = found("results")
    assert not finding.ok
    assert "missing" in finding.detail
    assert finding.remedy == "allow s3:ListBucket on the bucket"
    assert aws.objects == {}


@pytest.mark.parametrize("operation", ["GetObject", "DeleteObject"])
def test_any_other_answer_of_s3_is_a_failure(aws: FakeAws, operation: str) -> None:
    aws.refuses[operation] = "InternalError"
    assert not found("results").ok


def test_an_object_that_does_not_come_back_is_a_failure(aws: FakeAws) -> None:
    aws.loses = True
    finding = found("results")
    assert not finding.ok
    assert "did not return what was written" in finding.detail


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_may_drop_results_is_a_warning(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    written: list[str] = []
    redis = SimpleNamespace(
        set=lambda key, value, *, ex: written.append(key),
        delete=lambda key: written.append(f"-{key}"),
        info=lambda: {"maxmemory": 2**30, "maxmemory_policy": policy},
    )
    backend = SimpleNamespace(client=redis, get_key_for_task=lambda task_id: f"meta-{task_id}")
    app = SimpleNamespace(backend=backend)
    monkeypatch.setattr("forwarder.cli.tasks.impatient_app", lambda *_, **__: app)
    finding = found("results", Settings(result_backend="redis://:hunter2@host/1"))
    assert finding.ok
    assert (
        finding.detail
        == f"redis://***@host/1 takes results, but when its memory is full it drops them ({policy})"
    )
    key, deleted = written
    assert key.startswith("meta-forwarder-check-")
    assert deleted == f"-{key}"
    assert "noeviction" in finding.remedy


def test_a_stream_that_may_not_be_described_is_no_failure(aws: FakeAws) -> None:
    aws.refuses["DescribeDeliveryStream"] = "AccessDeniedException"
    detail = "stream stream not verified: no firehose:DescribeDeliveryStream"
    assert found("firehose") == Finding("firehose", True, detail)


def test_a_stream_that_is_not_there_is_a_failure(aws: FakeAws) -> None:
    aws.refuses["DescribeDeliveryStream"] = "ResourceNotFoundException"
    finding = found("firehose")
    assert not finding.ok
    assert "ResourceNotFoundException" in finding.detail


def test_a_role_that_may_not_be_assumed_is_a_failure(aws: FakeAws) -> None:
    aws.refuses["AssumeRole"] = "AccessDenied"
    finding = found("firehose", replace(ON_AWS, firehose_role_arn="arn:aws:iam::123456789012:role/r"))
    assert not finding.ok
    assert "AccessDenied" in finding.detail


@pytest.mark.parametrize(("status", "ok"), [("ACTIVE", True), ("CREATING", False)])
def test_a_stream_has_to_be_active(aws: FakeAws, status: str, ok: bool) -> None:
    aws.stream_status = status
    finding = found("firehose")
    assert (finding.ok, finding.detail) == (ok, f"stream stream is {status}")
