"""A client that is rebuilt before its credentials expire, by one caller at a time."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from forwarder.aws_errors import NoClientError, describe
from forwarder.backoff import Backoff

log = logging.getLogger(__name__)

C = TypeVar("C")

#: Rebuild this long before expiry, or a sixth of the credentials' life if that is shorter.
LEAD_MAX_S = 600.0
LEAD_FRACTION = 1 / 6

#: Waits between failed builds. A client that still serves can wait; with none at hand
#: records are failing, so the service is asked more often.
BACKOFF_SERVING = Backoff(base_s=1.0, max_s=30.0)
BACKOFF_STARVED = Backoff(base_s=1.0, max_s=5.0)

#: After so many failed builds in a row the trouble is no blip: with the waits above they
#: take three seconds at least, and botocore's own tries within each come on top.
LASTING_FAILURES = 4

#: A client younger than this is not thrown away on its user's word: if its credentials
#: are refused already, new ones would be too, and every record would cost a build.
DISCARD_AGE_MIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Built(Generic[C]):
    """What a build returns: a client and when its credentials expire.

    ``expires_at`` is in seconds since the epoch; None means never (the client
    renews its credentials by itself).
    """

    client: C
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class _Held(Generic[C]):
    """One client with its times, in seconds since the epoch. Swapped as a whole."""

    client: C
    built_at: float
    refresh_at: float
    expires_at: float


@dataclass(slots=True, eq=False)
class _Attempt(Generic[C]):
    """One build on its way. At ``done`` it has a result, or an error, or was interrupted."""

    done: threading.Event = field(default_factory=threading.Event)
    held: _Held[C] | None = None
    error: Exception | None = None


class RefreshingClient(Generic[C]):
    """Holds one client per process and keeps it usable.

    ``build`` is pure: it returns client and expiry or raises, so a failed build
    changes nothing. It runs in the caller that needs it, never under a lock.
    While it runs, other callers use the old client, or wait for it when there
    is none. ``clock`` tells seconds since the epoch, ``uniform(a, b)`` draws
    the jitter of the backoff. Works with greenlets (patched threading) and
    threads alike.
    """

    def __init__(
        self,
        *,
        service: str,
        build: Callable[[], Built[C]],
        clock: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._service = service
        self._build = build
        self._clock = clock
        self._uniform = uniform
        self._lock = threading.Lock()
        self._held: _Held[C] | None = None
        self._attempt: _Attempt[C] | None = None
        self._last_error: Exception | None = None
        self._builds = 0
        self._failures = 0  # since the last build that worked
        self._retry_at = 0.0

    def __repr__(self) -> str:
        state = "none" if self._held is None else f"expires_at={self._held.expires_at:.0f}"
        return f"<RefreshingClient {self._service} {state} builds={self._builds} failures={self._failures}>"

    def get(self) -> C:
        """Return a client whose credentials are valid.

        Blocks for one build when there is none, or when this caller is the one
        that renews it. Raises NoClientError when there is no valid client
        and the build failed, now or so recently that it is not tried again yet.
        """
        while True:
            with self._lock:
                held, now = self._held, self._clock()
                running = self._attempt
                may_build = running is None and now >= self._retry_at
                if held is not None and now < (held.refresh_at if may_build else held.expires_at):
                    return held.client
                if may_build:
                    attempt = self._attempt = _Attempt()
                elif running is not None:
                    attempt = running
                else:
                    raise self._unavailable() from self._last_error
            if may_build:
                self._run(attempt)
            else:
                attempt.done.wait()
            if attempt.held is not None:
                return attempt.held.client
            if attempt.error is not None:
                if held is not None and self._clock() < held.expires_at:
                    return held.client
                raise self._unavailable() from attempt.error
            # The greenlet that built was killed: somebody else has to.

    def discard(self, client: C) -> None:
        """Say that AWS no longer takes this client's credentials; the next ``get`` builds anew.

        Does nothing when that client was replaced already, was built a moment
        ago, or renews its credentials by itself. Never blocks.
        """
        with self._lock:
            held = self._held
            if held is None or held.client is not client or held.expires_at == math.inf:
                return
            if self._clock() >= held.built_at + DISCARD_AGE_MIN_S:
                self._held = None

    def _run(self, attempt: _Attempt[C]) -> None:
        try:
            self._install(attempt, _schedule(self._build(), self._clock()))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, callers and the log are told
            self._note_failure(attempt, error)
        finally:
            with self._lock:
                self._attempt = None
            attempt.done.set()

    def _install(self, attempt: _Attempt[C], held: _Held[C]) -> None:
        with self._lock:
            self._held = attempt.held = held
            self._failures = 0
            self._retry_at = 0.0
            self._builds += 1
            builds = self._builds
        life = "never" if held.expires_at == math.inf else f"{held.expires_at - held.built_at:.0f}"
        log.info("aws_client_built service=%s builds=%d expires_in_s=%s", self._service, builds, life)

    def _note_failure(self, attempt: _Attempt[C], error: Exception) -> None:
        with self._lock:
            attempt.error = self._last_error = error
            self._failures += 1
            now = self._clock()
            retry_in_s = self._retry_in_s(now)
            self._retry_at = now + retry_in_s
        log.warning(
            "aws_client_build_failed service=%s retry_in_s=%.1f error=%s",
            self._service,
            retry_in_s,
            describe(error),
        )

    def _retry_in_s(self, now: float) -> float:
        held = self._held
        if held is not None and now < held.expires_at:
            return min(BACKOFF_SERVING.wait_s(self._failures, self._uniform), held.expires_at - now)
        if self._failures == 1:
            return 0.0  # one failure with nothing to fall back on: the next record tries again
        return BACKOFF_STARVED.wait_s(self._failures, self._uniform)

    def _unavailable(self) -> NoClientError:
        return NoClientError(
            f"no {self._service} client with valid credentials",
            retry_in_s=max(0.0, self._retry_at - self._clock()),
            lasting=self._failures >= LASTING_FAILURES,
        )


def _schedule(built: Built[C], built_at: float) -> _Held[C]:
    """Return the client with the times at which it is renewed and given up.

    Raises NoClientError when its credentials have expired by our clock:
    holding it would mean a build for every record.
    """
    if built.expires_at is None:
        return _Held(built.client, built_at, refresh_at=math.inf, expires_at=math.inf)
    life_s = built.expires_at - built_at
    if life_s <= 0:
        raise NoClientError("the new credentials have expired already; is this machine's clock right?")
    refresh_at = built.expires_at - min(LEAD_MAX_S, life_s * LEAD_FRACTION)
    return _Held(built.client, built_at, refresh_at=refresh_at, expires_at=built.expires_at)
