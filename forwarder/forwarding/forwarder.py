"""The use case: one task from its payload to its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from forwarder.backoff import parse_retry_after
from forwarder.forwarding.errors import Expired, ForwarderError, InferenceBusy
from forwarder.forwarding.payload import (
    Payload,
    ResultShape,
    decode_answer,
    encode_body,
    parse_arrival,
    parse_expires,
    parse_payload,
)
from forwarder.forwarding.ports import (
    Answer,
    InferenceServer,
    Metrics,
    ObjectStore,
    Spool,
    StagedBody,
    Staging,
)
from forwarder.forwarding.record import step
from forwarder.forwarding.retry import Action, RetryPolicy

log = logging.getLogger(__name__)

#: Too many requests, service unavailable, and "overloaded" as some servers say it.
BUSY_STATUSES = frozenset({429, 503, 529})


class GoBack(Exception):
    """The task must go back to the queue; ``error`` says why. Not a failure."""

    def __init__(self, error: ForwarderError) -> None:
        super().__init__(error.code)
        self.error = error


@dataclass(frozen=True, slots=True)
class TaskCall:
    """One delivery of one task, as its message tells it.

    ``expires`` is still as the producer wrote it. ``retries`` counts how often
    the task went back to the queue before. ``headers`` go to the inference server.
    """

    task_id: str
    payload: object = field(repr=False)
    expires: object = None
    retries: int = 0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder:
    """Sends tasks to the inference server and makes results of its answers.

    ``now`` returns an aware UTC datetime; ``sleep`` takes seconds;
    ``uniform(a, b)`` draws the jitter.
    """

    server: InferenceServer
    staging: Staging
    objects: ObjectStore
    metrics: Metrics
    shape: ResultShape
    policy: RetryPolicy
    unwrap: bool
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    uniform: Callable[[float, float], float]

    def forward(self, call: TaskCall) -> Any:
        """Return the task's result (contract section 4).

        Blocks for the inference call and the waits between tries. Raises a
        ForwarderError when the task failed for good, GoBack when it should be
        tried from the queue again.
        """
        expires = parse_expires(call.expires)
        self._left_s(expires)
        payload = parse_payload(call.payload, unwrap=self.unwrap)
        if payload.url is None and payload.destination_path is None:
            answer = self._ask(call, encode_body(payload.body), expires)
            return self.shape.build(decode_answer(answer), answer.status)
        with self._body(payload, expires) as body, self._spool(payload) as spool:
            answer = self._ask(call, body, expires, spool)
            return self._result(payload, answer)

    def waited_s(self, arrival: object) -> float | None:
        """Return the seconds since the arrival time that the producer wrote, None when it can't be told."""
        now = self.now()
        moment = parse_arrival(arrival, now=now)
        return None if moment is None else (now - moment).total_seconds()

    def _ask(
        self,
        call: TaskCall,
        body: bytes | StagedBody,
        expires: datetime | None,
        spool: Spool | None = None,
    ) -> Answer:
        """Try until there is an answer that is not "busy", as the policy decides."""
        attempt, waited_s = 0, 0.0
        while True:
            try:
                answer = self._ask_once(call, body, self._left_s(expires), spool)
                if answer.status not in BUSY_STATUSES:
                    return answer
                raise InferenceBusy(
                    f"the inference server is busy (HTTP {answer.status})",
                    retry_after_s=parse_retry_after(answer.headers.get("retry-after"), now=self.now()),
                )
            except ForwarderError as error:
                decision = self.policy.decide(
                    error, attempt=attempt, waited_s=waited_s, retries=call.retries, uniform=self.uniform
                )
                if decision.action is Action.FAIL:
                    raise
                # Without its traceback: that refers to this frame, and a cycle would keep
                # the body alive until the garbage collector comes by.
                failed = error.with_traceback(None)
            log.info(
                "inference_retry task_id=%s code=%s attempt=%d action=%s wait_s=%.2f",
                call.task_id, failed.code, attempt + 1, decision.action.value, decision.wait_s,
            )  # fmt: skip
            left_s = self._left_s(expires)
            self.sleep(decision.wait_s if left_s is None else min(decision.wait_s, left_s))
            self._left_s(expires)
            if decision.action is Action.GO_BACK:
                raise GoBack(failed)
            attempt += 1
            waited_s += decision.wait_s

    def _ask_once(
        self, call: TaskCall, body: bytes | StagedBody, within_s: float | None, spool: Spool | None
    ) -> Answer:
        with step("inference", "predict") as asking:
            asking.asked(_size(body))
            headers = asking.headers(call.headers)
            answer = self.server.predict(body, headers=headers, within_s=within_s, spool=spool)
            asking.answered(answer.status, _size(answer.staged or answer.body))
        self.metrics.observe("forwarder_inference_seconds", answer.elapsed_s, status=str(answer.status))
        return answer

    def _body(self, payload: Payload, expires: datetime | None) -> AbstractContextManager[bytes | StagedBody]:
        if payload.url is None:
            return nullcontext(encode_body(payload.body))
        return self.staging.fetch(payload.url, within_s=self._left_s(expires))

    def _spool(self, payload: Payload) -> AbstractContextManager[Spool | None]:
        return nullcontext() if payload.destination_path is None else self.staging.spool()

    def _result(self, payload: Payload, answer: Answer) -> Any:
        if payload.destination_path is None or answer.status >= 400:
            return self.shape.build(decode_answer(answer), answer.status)
        self.objects.write(payload.destination_path, answer.staged or answer.body)
        return self.shape.build({"destination_path": payload.destination_path}, answer.status)

    def _left_s(self, expires: datetime | None) -> float | None:
        """Return the seconds until the task expires, None if it never does; raise Expired when it has."""
        if expires is None:
            return None
        left_s = (expires - self.now()).total_seconds()
        if left_s <= 0:
            raise Expired(f"the task expired at {expires.isoformat()}")
        return left_s


def _size(body: bytes | StagedBody) -> int:
    return len(body) if isinstance(body, bytes) else body.size_bytes
