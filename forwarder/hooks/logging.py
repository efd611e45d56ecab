"""The hook ``logging``: one Firehose record for each task."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable
from http import HTTPStatus

from forwarder.aws_errors import NoClientError, describe, error_code
from forwarder.backoff import Backoff
from forwarder.forwarding.ports import Completion
from forwarder.hooks.errors import HookError
from forwarder.hooks.firehose_record import build_record
from forwarder.hooks.record_batches import FirehoseClients, RecordBatches
from forwarder.settings.model import EndpointIdentity

TRIES_MAX = 6
BACKOFF = Backoff(base_s=0.2, max_s=5.0)

#: "Later" in the words of Firehose, of AWS's front door and, for IDPCommunicationError, of
#: STS. Any 429 or 5xx is tried again too.
#: https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecord.html
#: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
BUSY_CODES = frozenset(
    {
        "IDPCommunicationError",
        "LimitExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailableException",
        "Throttling",
        "ThrottlingException",
    }
)
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException"})


class Verdict(enum.Enum):
    """What a failed try calls for."""

    RETRY = "retry"
    RENEW = "renew"  # the credentials are no longer taken
    STOP = "stop"


class FirehoseHook:
    """Puts one record per task onto a delivery stream.

    At least once: a call that timed out may have been taken, and is sent again,
    so a reader counts tasks by ``TASK_ID``. ``linger_s`` is as in
    :class:`RecordBatches`. ``clock`` tells seconds since the epoch.
    """

    name = "logging"

    def __init__(
        self,
        *,
        clients: FirehoseClients,
        stream: str,
        endpoint: EndpointIdentity,
        linger_s: float | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clients = clients
        self._stream = stream
        self._batches = RecordBatches(clients=clients, stream=stream, linger_s=linger_s)
        self._endpoint = endpoint
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    def __repr__(self) -> str:
        return f"<FirehoseHook stream={self._stream}>"

    def deliver(self, completion: Completion) -> bool:
        """Send the task's record; always True.

        Blocks until Firehose has taken it: some milliseconds as a rule, at most
        TRIES_MAX tries with the waits between them when it, or the service that
        gives the credentials, is busy or out of reach. Raises HookError when it
        still is after the last try, or has been for long, or says no.
        """
        record = build_record(completion, endpoint=self._endpoint, emitted_at=self._clock())
        failed = 0
        renewed = False
        while True:
            sent = self._batches.put(record)
            if sent.error is None:
                return True
            verdict = judge(sent.error)
            if verdict is Verdict.RENEW and not renewed:
                renewed = True
                self._clients.discard(sent.client)
                continue
            failed += 1
            if verdict is not Verdict.RETRY or failed == TRIES_MAX:
                raise HookError(f"no record after {failed} tries: {_problem(sent.error)}") from sent.error
            # A try before a client may be built again would be none.
            asked_wait_s = sent.error.retry_in_s if isinstance(sent.error, NoClientError) else 0.0
            self._sleep(max(asked_wait_s, BACKOFF.wait_s(failed, self._uniform)))

    def close(self) -> None:
        """Do nothing: the client belongs to whoever made it."""


def judge(error: Exception) -> Verdict:
    """Decide what a failed try calls for. Pure.

    A client that can't be had is waited for only while that may help: not when
    its role is refused or its region missing, and not when others before this
    record have waited in vain.
    """
    from botocore.exceptions import (
        ClientError,
        CredentialRetrievalError,
        HTTPClientError,
        MetadataRetrievalError,
    )
    from botocore.exceptions import ConnectionError as UnreachableError

    if isinstance(error, NoClientError):
        cause = error.__cause__
        passing = isinstance(cause, Exception) and judge(cause) is Verdict.RETRY
        return Verdict.RETRY if passing and not error.lasting else Verdict.STOP
    if isinstance(error, ClientError):
        code = error_code(error)
        if code in EXPIRED_CODES:
            return Verdict.RENEW
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = code in BUSY_CODES or status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500
        return Verdict.RETRY if busy else Verdict.STOP
    # The two of retrieval: the pod's or the machine's credential service did not answer.
    unreachable = (UnreachableError, HTTPClientError, CredentialRetrievalError, MetadataRetrievalError)
    return Verdict.RETRY if isinstance(error, unreachable) else Verdict.STOP


def _problem(error: Exception) -> str:
    if isinstance(error, NoClientError):
        return f"no client: {describe(error.__cause__ or error)}"
    return describe(error)
