"""A Redis server that answers, but refuses: its memory is full, it can't persist, it is a replica.

Celery would take each refusal for a lost connection, and connect anew several times a second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

#: Seconds until a server that refused is asked again.
ASK_AGAIN_S = 1.0
#: Seconds after a refusal in which the outage counts as the same: the blocking loop asks every 2 s.
LASTS_S = 10.0
#: Of the server's text: what a worker sends to take messages, and so that text, holds none of them.
TEXT_CHARS_MAX = 100


class Refusal:
    """Whether the server refuses to hand out messages, and when to ask again; logged once."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._refused_s = -math.inf

    @property
    def waits(self) -> bool:
        """Return whether it is too early to ask again."""
        return self._monotonic() < self._refused_s + ASK_AGAIN_S

    def note(self, error: ResponseError) -> None:
        """Wait before the next try: the server has just refused."""
        now_s = self._monotonic()
        if now_s >= self._refused_s + LASTS_S:
            log.warning("broker_refuses error=%s", text_of(error))
        self._refused_s = now_s

    def end(self) -> None:
        """Go on: the server has just taken a write that adds something."""
        if self._refused_s > -math.inf:
            log.info("broker_accepts_again")
        self._refused_s = -math.inf


def require_writes(client: Any) -> None:
    """Raise ConnectionError when the server of a ``redis.Redis`` refuses writes. Blocks."""
    try:
        # Checked like any write that adds something, and adds nothing: XX is for what is there.
        client.zadd("forwarder:probe", {"probe": 0}, xx=True)
    except ResponseError as error:
        raise ConnectionError(f"the Redis server refuses writes: {text_of(error)}") from error


def text_of(error: ResponseError) -> str:
    """Return the kind of a refusal with the beginning of the server's text."""
    return f"{type(error).__name__}: {str(error)[:TEXT_CHARS_MAX]}"
