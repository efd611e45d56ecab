"""Sending the tasks at their time, and reading what came of them."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

#: Results that are looked for in vain before a round ends, from the oldest task on and elsewhere.
MISSES_MAX = 25

#: Task id to its stored state, None while there is none. Blocks for one round trip.
Read = Callable[[str], Mapping[str, Any] | None]
#: A stored state to the code of its failure, None where it has none.
ErrorCode = Callable[[Mapping[str, Any] | None], str | None]
#: Payload and task id.
Send = Callable[[dict[str, Any], str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One task that has its result; times are seconds since the epoch."""

    sent_at: float
    done_at: float
    state: str
    code: str | None

    @property
    def succeeded(self) -> bool:
        """Return whether its result is no failure."""
        return self.state == "SUCCESS"


class Sender(threading.Thread):
    """Sends each task when it is due; one that is late is sent at once, and those after it as planned.

    ``failure`` is what ended it before its time.
    """

    def __init__(
        self,
        *,
        send: Send,
        payloads: Iterator[dict[str, Any]],
        offsets_s: Iterator[float],
        sent: Callable[[str, float], object],
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="loadtest-sender", daemon=True)
        self._send = send
        self._payloads = payloads
        self._offsets_s = offsets_s
        self._sent = sent
        self._now = now
        self._stopped = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Send all tasks, or until ``stop``."""
        began = self._now()
        try:
            for payload, offset_s in zip(self._payloads, self._offsets_s, strict=True):
                wait_s = began + offset_s - self._now()
                if self._stopped.wait(wait_s) if wait_s > 0 else self._stopped.is_set():
                    return
                task_id = str(uuid.uuid4())
                at = self._now()
                self._send(payload, task_id)
                self._sent(task_id, at)
        except Exception as error:  # noqa: BLE001 - the run ends, and says what it was
            self.failure = error

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()


class Results:
    """The tasks that were sent, and those of them that have ended. Safe for one sender and one reader.

    Tasks mostly end in the order of sending, so each round looks from the oldest on; a
    few looks go round all the others, so that those behind a stuck one are seen too.
    """

    def __init__(self, *, read: Read, error_code: ErrorCode) -> None:
        self._read = read
        self._error_code = error_code
        self._lock = threading.Lock()
        self._pending: dict[str, float] = {}
        self._round = deque[str]()
        self.sent = 0
        self.ended: list[Ended] = []

    @property
    def pending(self) -> int:
        """Return how many were sent and have no result yet."""
        return len(self._pending)

    def add(self, task_id: str, at: float) -> None:
        """Note a task that was sent."""
        with self._lock:
            self._pending[task_id] = at
            self._round.append(task_id)
            self.sent += 1

    def look(self) -> int:
        """Read results and return how many new ones there were."""
        before = len(self.ended)
        with self._lock:
            oldest = list(self._pending)
        self._look_at(oldest)
        self._look_at(islice(iter(self._next, None), len(self._round)))
        return len(self.ended) - before

    def _next(self) -> str | None:
        with self._lock:
            while self._round:
                task_id = self._round.popleft()
                if task_id in self._pending:
                    self._round.append(task_id)
                    return task_id
        return None

    def _look_at(self, ids: Iterable[str]) -> None:
        misses = 0
        for task_id in ids:
            sent_at = self._pending.get(task_id)
            if sent_at is None:
                continue
            meta = self._read(task_id)
            if meta is None or meta.get("status") not in ("SUCCESS", "FAILURE", "REVOKED"):
                misses += 1
                if misses >= MISSES_MAX:
                    return
                continue
            with self._lock:
                del self._pending[task_id]
            state, code = str(meta["status"]), self._error_code(meta)
            self.ended.append(Ended(sent_at=sent_at, done_at=_stored_at(meta), state=state, code=code))


def _stored_at(meta: Mapping[str, Any]) -> float:
    """Return when the worker stored the result; now where it does not say."""
    try:
        at = datetime.fromisoformat(str(meta["date_done"]))
    except (KeyError, ValueError):
        return time.time()
    # Celery writes UTC, with or without saying so.
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
