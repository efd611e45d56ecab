"""The hook ``callback``: the result is POSTed to a URL of the task or of the operator."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from urllib3.exceptions import HTTPError

from forwarder.addresses import AddressGuard
from forwarder.backoff import Backoff, parse_retry_after
from forwarder.forwarding.ports import Completion
from forwarder.hooks.bodies import to_json, with_task_id
from forwarder.hooks.callback_http import Reply
from forwarder.hooks.callback_target import Target, authorization, find_target
from forwarder.hooks.errors import HookError
from forwarder.hooks.signing import Signer
from forwarder.lookups import Lookups
from forwarder.settings.model import EndpointIdentity

TRIES_MAX = 4
BACKOFF = Backoff(base_s=0.5, max_s=8.0)

#: A receiver that wants us back later than this is given up: the task's slot waits here.
ASKED_WAIT_MAX_S = 30.0


class Poster(Protocol):
    """Sends one request to one address."""

    def post(self, target: Target, *, address: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Return the answer, whatever its status. Blocks. Raises urllib3's HTTPError."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class CallbackHook:
    """Posts each result as JSON with ``task_id`` added; signed where there is a secret.

    At least once: an answer that got lost means another POST with the same
    ``webhook-id``. A URL from the payload is only followed to public addresses,
    or to what ``guard`` allows besides; the operator's own URL goes anywhere.
    ``clock`` tells seconds since the epoch.
    """

    name = "callback"

    def __init__(
        self,
        *,
        poster: Poster,
        default_url: str | None,
        guard: AddressGuard,
        signer: Signer | None,
        endpoint: EndpointIdentity,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._poster = poster
        self._default_url = default_url
        self._guard = guard
        self._signer = signer
        self._user_id = endpoint.user_id
        self._resolve = resolve or Lookups()
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    def __repr__(self) -> str:
        signed = "unsigned" if self._signer is None else "signed"
        return f"<CallbackHook {signed} default_url={'set' if self._default_url else 'none'}>"

    def deliver(self, completion: Completion) -> bool:
        """Post the result; False when neither the payload nor the operator names a URL.

        Blocks until the receiver has taken it: at most TRIES_MAX tries, each
        bounded by the poster and the look-up, and the waits between them. Raises HookError when
        the URL can't be used or the receiver says no, for good or at every try.
        """
        target = find_target(completion.payload, default_url=self._default_url)
        if target is None:
            return False
        body = to_json(with_task_id(completion.response, completion.task_id))
        headers = {
            "content-type": "application/json",
            "user-agent": "forwarder",
            **authorization(completion.payload, user_id=self._user_id),
        }
        failed = 0
        while True:
            asked_wait_s: float | None = 0.0
            try:
                reply = self._try(target, completion.task_id, headers, body, nth=failed)
            except (HTTPError, OSError) as error:
                problem = f"no answer: {type(error).__name__}"
            else:
                if 200 <= reply.status < 300:
                    return True
                problem = f"the receiver answered {reply.status}"
                asked_wait_s = asked_wait(reply, now=self._clock())
            failed += 1
            if asked_wait_s is None or asked_wait_s > ASKED_WAIT_MAX_S or failed == TRIES_MAX:
                raise HookError(f"given up after {failed} tries: {problem}")
            self._sleep(max(asked_wait_s, BACKOFF.wait_s(failed, self._uniform)))

    def close(self) -> None:
        """Close the idle connections."""
        self._poster.close()

    def _try(
        self, target: Target, task_id: str, headers: Mapping[str, str], body: bytes, *, nth: int
    ) -> Reply:
        addresses = self._resolve(target.host, target.port)
        if not target.trusted:
            addresses = [address for address in addresses if self._guard.permits(target.host, address)]
        if not addresses:
            raise HookError("callback_url leads to an address that is not public")
        if self._signer is not None:
            now_s = int(self._clock())
            headers = {**headers, **self._signer.headers(message_id=task_id, timestamp_s=now_s, body=body)}
        # Each try goes to the next address: one of them may be out of reach from here.
        return self._poster.post(target, address=addresses[nth % len(addresses)], headers=headers, body=body)


def asked_wait(reply: Reply, *, now: float) -> float | None:
    """Return for how long the receiver wants to be left alone (s), None for ever. Pure.

    "Later" is 408, 429 and 5xx, with Retry-After where it is given. A redirect
    is not followed, 410 says that nobody listens any more, and any other 4xx
    would be the same the next time.
    """
    if reply.status not in (408, 429) and reply.status < 500:
        return None
    return parse_retry_after(reply.retry_after, now=datetime.fromtimestamp(now, UTC)) or 0.0
