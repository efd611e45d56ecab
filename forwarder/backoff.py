"""How long to wait before the next try: pure, no IO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: A server that asks for a longer pause than this is not believed.
RETRY_AFTER_MAX_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponentially growing, jittered waits (seconds) between failed tries.

    The bound of a wait starts at ``base_s``, doubles with each failure and stops
    at ``max_s``. A wait is drawn between ``least_share`` of the bound and the
    bound: 0.5 so that nobody returns at once, 0.0 ("full jitter") to spread a
    crowd the widest:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    base_s: float
    max_s: float
    least_share: float = 0.5

    def wait_s(self, failed: int, uniform: Callable[[float, float], float]) -> float:
        """Return the wait after the ``failed``-th failed try, counted from 1."""
        bound_s = min(self.max_s, self.base_s * 2.0 ** min(failed - 1, 30))
        return uniform(self.least_share * bound_s, bound_s)


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return a Retry-After header in seconds from ``now`` (0 to 3,600), None when absent or unreadable.

    Both forms of RFC 9110 section 10.2.3 are read: seconds, and an HTTP date in
    any of its three spellings. ``now`` is aware.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:  # the spelling of asctime(), and an offset of -0000
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)
