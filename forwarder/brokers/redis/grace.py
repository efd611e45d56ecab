"""When leases that are overdue may be taken for those of dead workers."""

from __future__ import annotations

from collections.abc import Callable

from forwarder.brokers.keeper import round_s

#: Seconds for which a call on a server that doesn't answer may hang, at most.
CALL_S = 5.0


def grace_s(visibility_timeout_s: float) -> float:
    """Return the seconds that living owners need to renew, once the server can be reached again.

    They are for a call that still hangs, and for two rounds, of which one may fail;
    but a lease is never older than its timeout when they are over. They are no
    longer than that, because a fresh worker waits for them as well: the one that
    replaces a dead worker, and one that never lives long.
    """
    return min(visibility_timeout_s / 2, CALL_S + 2 * round_s(visibility_timeout_s))


class Grace:
    """Begins with this process, and anew whenever owners may not have been able to renew."""

    def __init__(self, *, visibility_timeout_s: float, monotonic: Callable[[], float]) -> None:
        self._length_s = grace_s(visibility_timeout_s)
        self._monotonic = monotonic
        self._contact_s = monotonic()
        self._until_s = self._contact_s + self._length_s

    def begin(self) -> None:
        """Begin anew."""
        self._until_s = self._monotonic() + self._length_s

    def note_contact(self) -> None:
        """Begin anew if the last contact with the server is long ago: it may have been frozen."""
        now_s = self._monotonic()
        if now_s - self._contact_s > self._length_s:
            self.begin()
        self._contact_s = now_s

    @property
    def lasts(self) -> bool:
        """Return whether it is too early to take over."""
        return self._monotonic() < self._until_s
