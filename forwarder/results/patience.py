"""Trying again while the result store is away, within a bound."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from forwarder.aws_errors import describe
from forwarder.backoff import Backoff

log = logging.getLogger(__name__)

#: A store that is back is noticed within five seconds; a crowd of slots does not come at once.
BACKOFF = Backoff(base_s=0.1, max_s=5.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how many seconds a running task waits for the result store.

    ``store`` is its address for the log, without credentials; ``sleep`` takes seconds;
    ``uniform(a, b)`` draws the jitter.
    """

    bound_s: float
    store: str = ""
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform

    def insist(self, step: Callable[[], T], *, task_id: str) -> T:
        """Return what ``step`` returns, tried until it works or the bound has passed.

        Blocks for at most the bound and one more step. Raises what the last step
        raised. Logs an outage when it begins and when it ends, not at each try.
        """
        started = self.monotonic()
        failed = 0
        while True:
            try:
                done = step()
            except Exception as error:  # a store fails in more ways than its client names
                failed += 1
                wait_s = BACKOFF.wait_s(failed, self.uniform)
                away_s = self.monotonic() - started
                if away_s + wait_s > self.bound_s:
                    log.warning(
                        "result_store_given_up task_id=%s store=%s error=%s tries=%d away_s=%.1f",
                        task_id, self.store, describe(error), failed, away_s,
                    )  # fmt: skip
                    raise
                if failed == 1:
                    log.warning(
                        "result_store_failing task_id=%s store=%s error=%s",
                        task_id, self.store, describe(error),
                    )  # fmt: skip
            else:
                if failed:
                    log.warning(
                        "result_store_recovered task_id=%s away_s=%.1f", task_id, self.monotonic() - started
                    )
                return done
            self.sleep(wait_s)
