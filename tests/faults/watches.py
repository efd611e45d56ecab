"""What sees the results come into the store, and writes them into the ledger.

What is seen here is in the store already, so a request that begins later is one too many.
"""

from __future__ import annotations

import contextlib
import json
import threading
from abc import ABC, abstractmethod
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from forwarder.testing.ledger import Ledger, open_ids

KEY = "celery-task-meta-"
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
STEP_S = 0.2


class ResultWatch(threading.Thread, ABC):
    """A thread that notes each outcome once, also those that were stored while it could not look."""

    def __init__(self, *, ledger: Ledger) -> None:
        super().__init__(name="result-watch", daemon=True)
        self._ledger = ledger
        self._stopped = threading.Event()
        self._seen: set[tuple[str, str]] = set()

    def __enter__(self) -> ResultWatch:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Watch until the context is left."""
        while not self._stopped.is_set():
            # Whatever the outage looks like to the client: the next look comes soon.
            with contextlib.suppress(Exception):
                self.watch()
            self._stopped.wait(0.05)

    @abstractmethod
    def watch(self) -> None:
        """Watch until stopped; may raise whatever the store's client raises, and is called again then."""

    def _see(self, raw: bytes) -> None:
        meta = json.loads(raw)
        if not isinstance(meta, dict):
            return  # the pardons of a task, beside its result
        known = (meta["task_id"], meta["status"])
        if meta["status"] in FINAL and known not in self._seen:
            self._seen.add(known)
            self._ledger.note("committed", *known)


class RedisWatch(ResultWatch):
    """Sees each result as the store announces it: Celery publishes every one under its key."""

    def __init__(self, *, port: int, ledger: Ledger) -> None:
        super().__init__(ledger=ledger)
        self._port = port

    def watch(self) -> None:
        """Subscribe, look for what came before, and listen."""
        # By itself it would subscribe again after an outage without a word, and the catch-up would be missed.
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(host="127.0.0.1", port=self._port, socket_timeout=5.0, retry=once)
        announcements: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with client, announcements as subscription:
            subscription.psubscribe(f"{KEY}*")
            subscription.get_message(timeout=5.0)  # subscribed: nothing is missed from here on
            self._catch_up(client)
            while not self._stopped.is_set():
                message = subscription.get_message(timeout=STEP_S)
                if message is not None:
                    self._see(message["data"])
            self._catch_up(client)

    def _catch_up(self, client: redis.Redis) -> None:
        due = sorted(open_ids(self._ledger.events()))
        values: Any = client.mget([KEY + task_id for task_id in due]) if due else ()
        for value in values:
            if value is not None:
                self._see(value)


class S3Watch(ResultWatch):
    """Lists the bucket five times a second; what has a new tag is new."""

    def __init__(self, *, client: Any, bucket: str, ledger: Ledger) -> None:
        super().__init__(ledger=ledger)
        self._client = client
        self._bucket = bucket
        self._tags: dict[str, str] = {}

    def watch(self) -> None:
        """Look, wait, and look once more at the end."""
        while not self._stopped.wait(STEP_S):
            self.look()
        self.look()

    def look(self) -> None:
        """Note what is new in the bucket. Blocks; raises botocore's errors."""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
            for entry in page.get("Contents", ()):
                key, tag = entry["Key"], entry["ETag"]
                if self._tags.get(key) != tag:
                    self._see(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())
                    self._tags[key] = tag
