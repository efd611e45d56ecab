"""The log as JSON, one object a line: the same events and fields that the console shows."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from forwarder.forwarding.record import CURRENT
from forwarder.telemetry.foreign_lines import exception_text

#: Whose messages are templates of the form ``event name=%s other=%d``: our own.
OURS = "forwarder"

#: What Datadog's tracer adds to a record for its log correlation, unless DD_LOGS_INJECTION forbids it.
#: https://docs.datadoghq.com/tracing/other_telemetry/connect_logs_and_traces/python/
TRACE_FIELDS = ("dd.trace_id", "dd.span_id", "dd.service", "dd.env", "dd.version")

#: What is written for "no trace" and "not set" there.
NO_TRACE = frozenset({"", "0"})

#: What stands in a line as it is.
PLAIN = frozenset({str, int, bool, type(None)})

_SPEC = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]")
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=str)


class Field(NamedTuple):
    """One ``name=value`` of a template; ``alone`` when the value is one placeholder and nothing else."""

    name: str
    template: str
    args: slice
    alone: bool


class Template(NamedTuple):
    """An event, its fields, and the words that follow them."""

    event: Field
    fields: tuple[Field, ...]
    message: Field | None


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object.

    Always there: ``ts`` (UTC), ``level``, ``pid``, ``logger``, ``event``. A library's line
    has its message as the event. ``task_id`` and ``queue`` are there while a task runs, in every
    line of it; the trace's ids while it is traced; ``exception`` where one was logged.
    Numbers are numbers, and what is not known is null.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: ASCII, with no control character as itself."""
        line: dict[str, Any] = {
            "ts": _time(record.created),
            "level": record.levelname,
            "pid": record.process,
            "logger": record.name,
        }
        _tell(record, line)
        task = CURRENT.get()
        if task is not None:
            line.setdefault("task_id", task.task_id)
            line.setdefault("queue", task.queue)
        line.update(trace_fields(record))
        if record.exc_info:
            line["exception"] = exception_text(record.exc_info)
        return _ENCODER.encode(line)


def trace_fields(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    """Yield what the tracer wrote into a record; nothing outside of a trace."""
    attributes = record.__dict__
    if attributes.get(TRACE_FIELDS[0], "0") in NO_TRACE:
        return
    for name in TRACE_FIELDS:
        value = str(attributes.get(name, ""))
        if value not in NO_TRACE:
            yield name, value


def _tell(record: logging.LogRecord, line: dict[str, Any]) -> None:
    """Add what a record's message tells."""
    args = record.args or ()
    if not record.name.startswith(OURS) or not isinstance(record.msg, str) or not isinstance(args, tuple):
        line["event"] = record.getMessage()
        return
    template = _parsed(record.msg)
    line["event"] = _text(template.event, args)
    for name, text, places, alone in template.fields:
        if alone:
            value = args[places.start]
            line[name] = value if type(value) in PLAIN else _plain(value)
        else:
            line[name] = _text(Field(name, text, places, alone), args)
    if template.message is not None:
        line["message"] = _text(template.message, args)


@lru_cache(maxsize=512)  # of the templates in the code, one each
def _parsed(message: str) -> Template:
    """Read a template: the event, then ``name=value`` as long as there are any, then words."""
    words = message.split(" ")
    place = 0
    taken: list[Field] = []
    while words and (not taken or "=" in words[0]):
        name, _, value = words[0].partition("=") if taken else ("event", "", words[0].rstrip(":"))
        ends = value.endswith(":")
        value = value.rstrip(":")
        number = len(_SPEC.findall(value))
        alone = number == 1 and _SPEC.fullmatch(value) is not None
        taken.append(Field(name, value, slice(place, place + number), alone))
        place += number
        del words[0]
        if ends:
            break
    rest = Field("message", " ".join(words), slice(place, None), False) if words else None
    return Template(taken[0], tuple(taken[1:]), rest)


def _text(field: Field, args: tuple[Any, ...]) -> str:
    values = args[field.args]
    return field.template % values if values else field.template


def _plain(value: object) -> object:
    """Return a value that JSON has; whatever is no number, bool or None is told as text."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (int, str)) else str(value)


def _clock() -> Callable[[float], str]:
    """Return what writes a time; the second that was written last is kept, as it is seldom another."""
    second, text = -1, ""

    def written(created: float) -> str:
        nonlocal second, text
        if int(created) != second:
            second = int(created)
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{text}.{int(created % 1 * 1000):03d}Z"

    return written


_time = _clock()
