"""Both ends of the traffic: what sends the load, and what sees the outcomes."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from forwarder.testing.ledger import Expect, Ledger, open_ids
from forwarder.testing.producer import Producer
from forwarder.testing.services import Valkey

KEY = "celery-task-meta-"
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
STEP_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``burst`` tasks at once, then so many a second until the nemesis is done.

    ``behaviour`` is the model server's for each of them; None leaves it to what
    the nemesis makes of the server.
    """

    burst: int = 0
    per_s: float = 12.0
    behaviour: Mapping[str, Any] | None = None


class Sender:
    """Sends tasks and writes them into the ledger. Thread-safe: kombu's pools are."""

    def __init__(self, *, producer: Producer, ledger: Ledger, expect: Expect) -> None:
        self._producer = producer
        self._ledger = ledger
        self._expect = expect

    def send(
        self,
        behaviour: Mapping[str, Any] | None = None,
        *,
        expect: Expect | None = None,
        task_id: str | None = None,
        padding_bytes: int = 0,
        **options: Any,
    ) -> str:
        """Send one task and return its id. Blocks a few seconds while the broker is away; never raises."""
        task_id = task_id or f"task-{uuid.uuid4().hex}"
        body: dict[str, Any] = {"id": task_id, "numbers": [1, 2, 3]}
        if behaviour is not None:
            body["behaviour"] = dict(behaviour)
        payload = {"args": body, "padding": "x" * padding_bytes}
        try:
            self._producer.send(payload, task_id=task_id, **options)
        except Exception as error:  # noqa: BLE001 - whatever it was, the broker may have the task or not
            self._ledger.note("unsure", task_id, type(error).__name__)
        else:
            self._ledger.note("sent", task_id, expect or self._expect)
        return task_id

    @contextlib.contextmanager
    def under(self, load: Load) -> Iterator[None]:
        """Send the burst, then the rest in a thread for as long as the block runs."""
        stopped = threading.Event()
        for _ in range(load.burst):
            self.send(load.behaviour)

        def keep_sending() -> None:
            while not stopped.wait(1 / load.per_s):
                self.send(load.behaviour)

        thread = threading.Thread(target=keep_sending, name="load", daemon=True)
        if load.per_s:
            thread.start()
        try:
            yield
        finally:
            stopped.set()
            if load.per_s:
                thread.join()


class ResultWatch(threading.Thread):
    """Writes each result into the ledger as the store announces it, and catches up after an outage.

    Celery publishes every result under its key when it stores it. What is seen
    here is in the store already, so a request that begins later is one too many.
    """

    def __init__(self, *, store: Valkey, ledger: Ledger) -> None:
        super().__init__(name="result-watch", daemon=True)
        self._store = store
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
            with contextlib.suppress(redis.RedisError, OSError):
                self._watch()
            self._stopped.wait(0.05)

    def _watch(self) -> None:
        # By itself it would subscribe again after an outage without a word, and the catch-up would be missed.
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(host="127.0.0.1", port=self._store.port, socket_timeout=5.0, retry=once)
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

    def _see(self, raw: bytes) -> None:
        meta = json.loads(raw)
        known = (meta["task_id"], meta["status"])
        if meta["status"] in FINAL and known not in self._seen:
            self._seen.add(known)
            self._ledger.note("committed", *known)
