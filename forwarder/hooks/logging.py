"""The hook ``logging``: one Firehose record for each task."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from forwarder.forwarding.ports import Completion
from forwarder.hooks.backoff import Backoff
from forwarder.hooks.errors import HookError
from forwarder.hooks.firehose_record import build_record
from forwarder.settings.model import EndpointIdentity

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

BACKOFF = Backoff(tries=6, base_s=0.2, max_s=5.0)

#: Firehose's and the front door's words for "later". Any 429 or 5xx is tried again too.
#: https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecord.html
BUSY_CODES = frozenset(
    {
        "LimitExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailableException",
        "Throttling",
        "ThrottlingException",
    }
)
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException"})


class Verdict(enum.Enum):
    """What a failed PutRecord calls for."""

    RETRY = "retry"
    RENEW = "renew"  # the credentials are no longer taken
    STOP = "stop"


class FirehoseClients(Protocol):
    """Where the client comes from: it changes when its credentials are renewed."""

    def get(self) -> Any:
        """Return a client with valid credentials. Blocks while one is built. Raises when there is none."""
        ...

    def discard(self, client: Any) -> None:
        """Say that AWS no longer takes this client's credentials."""
        ...


class FirehoseHook:
    """Puts one record per task onto a delivery stream.

    At least once: a call that timed out may have been taken, and is sent again,
    so a reader counts tasks by ``TASK_ID``. ``clock`` tells seconds since the
    epoch.
    """

    name = "logging"

    def __init__(
        self,
        *,
        clients: FirehoseClients,
        stream: str,
        endpoint: EndpointIdentity,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clients = clients
        self._stream = stream
        self._endpoint = endpoint
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    def __repr__(self) -> str:
        return f"<FirehoseHook stream={self._stream}>"

    def deliver(self, completion: Completion) -> bool:
        """Send the task's record; always True.

        Blocks until Firehose has taken it: some milliseconds as a rule, tries
        and waits of BACKOFF when it is busy or out of reach. Raises HookError
        when it still is after the last try, or says no.
        """
        record = {"Data": build_record(completion, endpoint=self._endpoint, emitted_at=self._clock())}
        failed = 0
        renewed = False
        while True:
            client = None
            try:
                client = self._clients.get()
                client.put_record(DeliveryStreamName=self._stream, Record=record)
                return True
            except Exception as error:
                verdict = judge(error) if client is not None else Verdict.RETRY
                if verdict is Verdict.RENEW and not renewed:
                    renewed = True
                    self._clients.discard(client)
                    continue
                failed += 1
                if verdict is not Verdict.RETRY or failed == BACKOFF.tries:
                    raise HookError(f"no record after {failed} tries: {_describe(error)}") from error
            self._sleep(BACKOFF.wait_s(failed, self._uniform))

    def close(self) -> None:
        """Do nothing: the client belongs to whoever made it."""


def judge(error: Exception) -> Verdict:
    """Decide what a failed PutRecord calls for. Pure."""
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as UnreachableError

    if isinstance(error, ClientError):
        if _code(error) in EXPIRED_CODES:
            return Verdict.RENEW
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = _code(error) in BUSY_CODES or status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500
        return Verdict.RETRY if busy else Verdict.STOP
    unreachable = isinstance(error, (UnreachableError, HTTPClientError))
    return Verdict.RETRY if unreachable else Verdict.STOP


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _describe(error: Exception) -> str:
    from botocore.exceptions import ClientError

    # AWS's code and no more: its messages name accounts and roles.
    return _code(error) if isinstance(error, ClientError) else type(error).__name__
