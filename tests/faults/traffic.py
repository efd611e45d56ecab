"""What sends the load."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forwarder.testing.ledger import Expect, Ledger
from forwarder.testing.producer import Producer


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
