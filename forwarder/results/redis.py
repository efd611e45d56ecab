"""Results in Redis: one SETEX and PUBLISH in one round trip per state."""

from __future__ import annotations

from celery.backends import redis as celery_redis

from forwarder.results.single_write import SingleWriteBackend


class RedisBackend(SingleWriteBackend, celery_redis.RedisBackend):
    """Celery's Redis backend without the read before each write.

    One object and one connection pool a process, whatever the pool: the app
    keeps it process-wide (``result_backend_thread_safe``), redis-py's pool is
    safe to share and notices a fork by itself.
    """

    #: Redis's own limit of a string: https://redis.io/docs/latest/develop/data-types/strings/
    value_bytes_max = 512 * 1024 * 1024

    def set(
        self, key: str | bytes, value: str | bytes, expires: int | None = None, **_retry_policy: object
    ) -> None:
        """Store the text in one try: Celery's own twenty would hold up the worker's main loop."""
        super().set(key, value, expires, max_retries=0)  # type: ignore[call-arg,arg-type]  # next is Redis's
