"""A worker that was told to stop takes no more messages."""

from __future__ import annotations

import time
from typing import Any

from celery.worker import state

#: The remote control's greenlet goes on calling while tasks finish; it must not spin.
PAUSE_S = 0.05


class StopsAtOnce:
    """A transport whose ``drain_events`` finds nothing once the worker is to stop.

    Celery's blocking loop (gevent) runs one more cycle after a stop: it would
    wait for another message for 2 s, on SQS for a long poll, and take it.
    """

    def drain_events(self, connection: Any, **kwargs: Any) -> None:
        """Wait for messages as the transport does. Raises TimeoutError when there are none."""
        if state.should_stop is not None:
            time.sleep(PAUSE_S)
            raise TimeoutError
        super().drain_events(connection, **kwargs)  # type: ignore[misc]
