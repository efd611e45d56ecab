"""When results came, as the Redis server tells it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis


class Stored:
    """When each result came: Redis tells of every key that is written."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=None)  # it waits for events
        self._client.config_set("notify-keyspace-events", "E$l")
        self._events: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._at: dict[str, float] = {}
        database = url.rsplit("/", 1)[1]
        self._events.psubscribe(f"__keyevent@{database}__:set", f"__keyevent@{database}__:lpush")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, redis.RedisError):  # the server has ended
            while True:
                event = self._events.get_message(timeout=None)
                if event is not None:
                    self._at.setdefault(event["data"].decode(), time.time())

    def wait(self, keys: Sequence[str], timeout_s: float) -> list[float]:
        """Return when each of these results was stored. Raises TimeoutError."""
        found = self.those(keys, timeout_s)
        if len(found) < len(keys):
            raise TimeoutError(f"{len(keys) - len(found)} of {len(keys)} results did not come")
        return found

    def those(self, keys: Sequence[str], timeout_s: float) -> list[float]:
        """Return when those of these results were stored that came in time. Blocks until all have."""
        deadline = time.monotonic() + timeout_s
        missing = set(keys)
        while missing and time.monotonic() < deadline:
            time.sleep(0.02)
            missing.difference_update(tuple(self._at))
        return [self._at[key] for key in keys if key not in missing]

    def forget(self) -> None:
        """Drop what came so far."""
        self._at.clear()
