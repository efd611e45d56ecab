"""What the watcher of S3 makes of the objects in the bucket."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from forwarder.testing.ledger import Ledger
from tests.faults.watches import S3Watch


class Bucket:
    """As much of boto3's S3 client as the watcher uses."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.reads: list[str] = []

    def get_paginator(self, operation: str) -> Bucket:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str) -> list[dict[str, Any]]:  # noqa: N803 - boto3's name
        return [{"Contents": [{"Key": k, "ETag": s}]} for k, s in self.states.items()] or [{}]

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        self.reads.append(Key)
        meta = {"task_id": Key, "status": self.states[Key]}
        return {"Body": io.BytesIO(json.dumps(meta).encode())}


def watched(bucket: Bucket, ledger: Ledger) -> S3Watch:
    watch = S3Watch(client=bucket, bucket="results", ledger=ledger)
    watch.look()
    return watch


def test_an_outcome_in_s3_is_noted_once_and_read_once(tmp_path: Path) -> None:
    ledger, bucket = Ledger(tmp_path / "ledger"), Bucket()
    bucket.states = {"a": "SUCCESS"}
    watch = watched(bucket, ledger)
    watch.look()
    assert [(event.what, event.id, event.detail) for event in ledger.events()] == [
        ("committed", "a", "SUCCESS")
    ]
    assert bucket.reads == ["a"]


def test_a_state_that_is_not_final_is_no_outcome_until_it_is_replaced(tmp_path: Path) -> None:
    ledger, bucket = Ledger(tmp_path / "ledger"), Bucket()
    bucket.states = {"a": "RETRY"}
    watch = watched(bucket, ledger)
    assert not list(ledger.events())
    bucket.states = {"a": "FAILURE"}
    watch.look()
    assert [event.detail for event in ledger.events()] == ["FAILURE"]
