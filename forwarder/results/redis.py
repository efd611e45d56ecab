"""Results in Redis: one SET with its expiry and one PUBLISH in one round trip per state."""

from __future__ import annotations

from typing import Any

from celery.backends import redis as celery_redis

from forwarder.redis_batches import RedisBatches
from forwarder.results.single_write import LOOK_ID, SingleWriteBackend

#: Results above this many bytes take a connection of their own: others don't wait for them.
ALONE_BYTES = 256 * 1024


class RedisBackend(SingleWriteBackend, celery_redis.RedisBackend):
    """Celery's Redis backend without the read before each write.

    One object and one connection pool a process, whatever the pool: the app
    keeps it process-wide (``result_backend_thread_safe``), redis-py's pool is
    safe to share and notices a fork by itself. With the transport option
    ``batched`` what many tasks ask for at a time goes in one round trip.
    """

    #: Redis's own limit of a string: https://redis.io/docs/latest/develop/data-types/strings/
    value_bytes_max = 512 * 1024 * 1024

    #: Celery's own, which the stubs lack.
    app: Any
    client: Any
    expires: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        batched = self.app.conf.result_backend_transport_options.get("batched")
        self._batches = RedisBatches(client=lambda: self.client) if batched else None

    def get(self, key: Any) -> Any:
        """Return what is stored under a key, None when nothing is."""
        if self._batches is None:
            return super().get(key)
        return self._batches.run(("GET", key))[0]

    def look(self) -> None:
        """Ask for a write, which a server without memory refuses, and a replica; XX writes over nothing.

        Blocks for one round trip; raises redis-py's errors.
        """
        self.client.set(self.get_key_for_task(LOOK_ID), "", xx=True)

    def set(
        self, key: str | bytes, value: str | bytes, expires: int | None = None, **_retry_policy: object
    ) -> None:
        """Store the text in one try: Celery's own twenty would hold up the worker's main loop."""
        if self._batches is None or len(value) > ALONE_BYTES:
            super().set(key, value, expires, max_retries=0)  # type: ignore[call-arg,arg-type]  # next is Redis's
            return
        lasting_s = self.expires if expires is None else expires
        life = ("EX", lasting_s) if lasting_s else ()
        self._batches.run(("SET", key, value, *life), ("PUBLISH", key, value))
