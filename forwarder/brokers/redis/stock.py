"""What an ancestor or a stock worker of the same queues left unacked, in the index that kombu shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from kombu.transport.redis import PRIORITY_STEPS, Channel

from forwarder.brokers.redis.scripts import SWEEP_STOCK

#: Seconds between two sweeps.
EVERY_S = 60.0
#: Entries of one script call, and calls of one sweep.
PAGE = 100
PAGES_MAX = 10


class StockLeftovers:
    """Gives messages back that stock workers took longer ago than their own visibility timeout.

    kombu keeps one index per database for all its queues and apps; only what
    leads to one of ours is touched. ``run_script(script, *args)`` runs one on the
    server; ``timeout_s`` is the stock workers' visibility timeout.
    """

    def __init__(self, *, run_script: Callable[..., Any], timeout_s: float) -> None:
        self._run_script = run_script
        self._timeout_s = timeout_s
        self._due_s = 0.0
        self._skip = 0

    def sweep(self, queues: Iterable[str], now_s: float) -> int:
        """Return how many messages went back to their queues; looks once in ``EVERY_S``. Blocks."""
        if now_s < self._due_s:
            return 0
        self._due_s = now_s + EVERY_S
        moved, steps = 0, json.dumps(PRIORITY_STEPS)
        for _ in range(PAGES_MAX):
            looked_at, restored = self._run_script(
                SWEEP_STOCK, self._timeout_s, self._skip, PAGE, Channel.sep, steps, *queues
            )
            moved += restored
            # What leads elsewhere stays in the index: it must not hide what comes after it.
            self._skip += looked_at - restored
            if looked_at < PAGE:
                self._skip = 0
                break
        return moved
