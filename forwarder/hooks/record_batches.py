"""Firehose records of many tasks in one call: a call costs milliseconds of CPU, however many it carries."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from forwarder.aws_errors import error_code

log = logging.getLogger(__name__)

#: Of one PutRecordBatch; the bytes leave room for base64:
#: https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html
RECORDS_MAX = 500
BYTES_MAX = 3_000_000

DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException"})


class FirehoseClients(Protocol):
    """Where the client comes from: it changes when its credentials are renewed."""

    def get(self) -> Any:
        """Return a client with valid credentials. Blocks while one is built. Raises NoClientError."""
        ...

    def discard(self, client: Any) -> None:
        """Say that AWS no longer takes this client's credentials."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a try to send one record; without an error Firehose has it."""

    client: Any
    error: Exception | None


@dataclass(slots=True, eq=False)
class _Waiting:
    data: bytes
    sent: Sent | None = None


class RecordBatches:
    """Sends what has gathered since the last call in one; safe from threads and greenlets.

    Calls begin ``linger_s`` apart at least, so a record that comes alone does not
    wait. None sends each record by itself, as many at a time as callers; so does
    a role that allows PutRecord alone.
    """

    def __init__(
        self,
        *,
        clients: FirehoseClients,
        stream: str,
        linger_s: float | None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clients = clients
        self._stream = stream
        self._linger_s = linger_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._calling = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._called_s = -float("inf")

    def put(self, data: bytes) -> Sent:
        """Send one record and return what became of it. Blocks for the pause and at most two calls."""
        try:
            client = self._clients.get()  # outside: who builds one keeps nobody else waiting
        except Exception as error:  # noqa: BLE001 - the hook judges it
            return Sent(None, error)
        if self._linger_s is not None:
            mine = _Waiting(data)
            self._waiting.append(mine)
            # Whoever comes in takes along what the others outside wait with.
            with self._calling:
                while mine.sent is None and self._linger_s is not None:
                    self._sleep(max(0.0, self._called_s + self._linger_s - self._monotonic()))
                    self._send_waiting(client)
            if mine.sent is not None:
                return mine.sent
        try:
            client.put_record(DeliveryStreamName=self._stream, Record={"Data": data})
        except Exception as error:  # noqa: BLE001 - as above
            return Sent(client, error)
        return Sent(client, None)

    def _send_waiting(self, client: Any) -> None:
        batch = self._next_batch()
        records = [{"Data": each.data} for each in batch]
        self._called_s = self._monotonic()
        try:
            answer = client.put_record_batch(DeliveryStreamName=self._stream, Records=records)
            errors = [_refusal(each) for each in answer["RequestResponses"]]
        except Exception as error:  # noqa: BLE001 - as above
            errors = [error] * len(batch)
        except BaseException:  # this greenlet is killed; the others' records stay
            self._waiting.extendleft(reversed(batch))
            raise
        if errors[0] is not None and error_code(errors[0]) in DENIED_CODES:
            log.warning(
                "firehose_batches_denied: allow firehose:PutRecordBatch, which is cheaper than one by one"
            )
            self._linger_s = None
            self._waiting.clear()
            return
        for each, problem in zip(batch, errors, strict=True):
            each.sent = Sent(client, problem)

    def _next_batch(self) -> Sequence[_Waiting]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].data)
        while self._waiting and len(batch) < RECORDS_MAX:
            size += len(self._waiting[0].data)
            if size > BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
        return batch


def _refusal(answer: dict[str, Any]) -> Exception | None:
    """Return the error of one record of a batch that was taken; it is always one of Firehose's own."""
    from botocore.exceptions import ClientError

    code = answer.get("ErrorCode")
    if not code:
        return None
    status: Any = {"HTTPStatusCode": 500}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": status}, "PutRecordBatch")
