"""Reads a task's payload and builds the request and the result: pure functions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from forwarder.forwarding.errors import (
    EmptyResponse,
    InvalidPayload,
    InvalidResponse,
    PickleRefused,
)
from forwarder.forwarding.ports import Answer

#: Text of an error answer that is kept when it is not JSON (an HTML error page, say).
ERROR_TEXT_CHARS_MAX = 4096

#: Clocks of producer and worker differ; an arrival this far ahead is still "now".
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload that keeps to the contract.

    Exactly one of ``body`` and ``url`` is used: ``url`` is None when the body
    travels in the message. No field appears in ``repr`` but the references.
    """

    body: Any = field(repr=False)
    url: str | None
    destination_path: str | None


def parse_payload(payload: object, *, unwrap: bool) -> Payload:
    """Read the first positional argument of a task.

    Raises InvalidPayload when it is not an object or a known key has the wrong
    type, PickleRefused when it asks for unpickling. Unknown keys are left alone.
    Without ``unwrap`` the payload is the body, so ``args`` and ``url`` in it are
    the inference server's business.
    """
    if not isinstance(payload, Mapping):
        raise InvalidPayload(f"payload must be a JSON object, got {_json_type(payload)}")
    for key in ("cloudpickle", "return_pickled"):
        if payload.get(key):
            raise PickleRefused(f"payload key {key!r} is refused: nothing is ever unpickled")
    destination = _optional_text(payload, "destination_path")
    if destination is not None and not destination.startswith("s3://"):
        raise InvalidPayload("payload key 'destination_path' must be an s3:// URL")
    if not unwrap:
        return Payload(body=payload, url=None, destination_path=destination)
    url = _optional_text(payload, "url")
    if url is not None:
        if payload.get("args") is not None:
            raise InvalidPayload("payload has both 'args' and 'url'; send one of them")
        return Payload(body=None, url=url, destination_path=destination)
    if "args" in payload:
        body = payload["args"]
        if body is None:
            raise InvalidPayload("payload key 'args' is null and there is no 'url'")
        return Payload(body=body, url=None, destination_path=destination)
    return Payload(body=payload, url=None, destination_path=destination)


def encode_body(body: object) -> bytes:
    """Return the JSON bytes to send.

    Raises InvalidPayload for what JSON can't say: NaN, infinities, lone
    surrogates, nesting beyond the interpreter's recursion limit.
    """
    try:
        return _ENCODER.encode(body).encode()
    except RecursionError:
        raise InvalidPayload("payload is nested too deeply") from None
    except UnicodeEncodeError:
        raise InvalidPayload("payload has text that is not valid Unicode") from None
    except (ValueError, TypeError):
        # From None: json's own message quotes the value.
        raise InvalidPayload("payload holds a value that JSON can't say, such as NaN") from None


def decode_answer(answer: Answer) -> Any:
    """Return the response as JSON data.

    An answer of 400 and above is a result whatever its body is: text that is
    not JSON is kept as a string of at most 4,096 characters. Raises
    EmptyResponse or InvalidResponse for a 2xx or 3xx answer that has no JSON;
    204 and 205 have no body by definition and give None.
    """
    if not answer.body.strip():
        if answer.status in (204, 205) or answer.status >= 400:
            return None
        raise EmptyResponse(f"the inference server answered {answer.status} with an empty body")
    try:
        return _loads(answer.body)
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except ValueError:
        reason = "not JSON"
    if answer.status >= 400:
        return answer.body[: 4 * ERROR_TEXT_CHARS_MAX].decode(errors="replace")[:ERROR_TEXT_CHARS_MAX]
    content_type = answer.headers.get("content-type", "none")[:100]
    raise InvalidResponse(
        f"the inference server answered {answer.status} with a body that is {reason}",
        f"content-type {content_type}, {len(answer.body)} bytes",
    )


@dataclass(frozen=True, slots=True)
class ResultShape:
    """How a response becomes a result (contract section 4)."""

    wrap: bool = True
    status_in_body: bool = True
    as_string: bool = False

    def build(self, response: Any, status: int) -> Any:
        """Return what is stored as the task's result."""
        if not self.wrap:
            return response
        wrapped: dict[str, Any] = {"result": json.dumps(response) if self.as_string else response}
        if self.status_in_body:
            wrapped["status_code"] = status
        return wrapped


def parse_arrival(arrival: object, *, now: datetime) -> datetime | None:
    """Return when the task arrived, in UTC, or None when that can't be told.

    Producers send a datetime (Celery's JSON carries it), ISO 8601 text or
    seconds since 1970; without a zone it is UTC. A time more than five minutes
    ahead is not believed.
    """
    try:
        if isinstance(arrival, datetime):
            moment = arrival
        elif isinstance(arrival, str):
            moment = datetime.fromisoformat(arrival)
        elif isinstance(arrival, (int, float)) and not isinstance(arrival, bool) and math.isfinite(arrival):
            moment = datetime.fromtimestamp(arrival, UTC)
        else:
            return None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    if moment > now + CLOCK_SKEW:
        return None
    return min(moment, now)


def parse_expires(expires: object) -> datetime | None:
    """Return the message's ``expires`` header in UTC, None when absent.

    Raises InvalidPayload when it is there and can't be read: running a task
    whose sender set a limit that we don't understand could be worse than not.
    """
    if expires is None:
        return None
    try:
        if isinstance(expires, datetime):
            moment = expires
        elif isinstance(expires, str):
            moment = datetime.fromisoformat(expires)
        else:
            raise TypeError
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):  # the last: in UTC it is before year 1 or after 9999
        raise InvalidPayload("message header 'expires' is not an ISO 8601 time") from None


def _optional_text(payload: Mapping[str, Any], key: str) -> str | None:
    value = payload.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidPayload(f"payload key {key!r} must be a non-empty string, got {_json_type(value)}")
    return value


def _loads(body: bytes) -> Any:
    """Read JSON as other languages do: no NaN, and no number beyond a double.

    A ``parse_float`` costs a call per number, so it is used only where the text
    has what could overflow.
    """
    decoder = _CAREFUL_DECODER if _MAY_OVERFLOW.search(body) else _DECODER
    return decoder.decode(body.decode(json.detect_encoding(body), "surrogatepass"))  # as json.loads does


_MAY_OVERFLOW = re.compile(rb"[eE]\+?\d{3}|\d{300}")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("beyond a double")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


# Once, not for each task, as json.loads and json.dumps do with any option.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_CAREFUL_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "an array"
    return "an object" if isinstance(value, Mapping) else type(value).__name__
