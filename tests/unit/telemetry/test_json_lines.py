"""JSON lines: the same events and fields as on the console, of our own lines and of libraries'."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forwarder.forwarding.record import CURRENT, TaskRecord
from forwarder.telemetry.json_lines import JsonLines
from forwarder.telemetry.logs import OneLine

ROOT = Path(__file__).parents[3]
RESERVED = {"ts", "level", "pid", "logger", "event", "message", "exception"}


def line(message: str, *args: Any, name: str = "forwarder.x", **attributes: Any) -> dict[str, Any]:
    """Return what is written of a record, read back."""
    record = logging.LogRecord(name, logging.INFO, "file.py", 1, message, args, None)
    record.__dict__.update(attributes)
    text = JsonLines().format(record)
    assert text.isascii()
    assert text.isprintable()
    return dict(json.loads(text))


@pytest.fixture
def running() -> Iterator[TaskRecord]:
    record = TaskRecord(task_id="t-1", queue="q")
    token = CURRENT.set(record)
    yield record
    CURRENT.reset(token)


def test_a_line_has_its_time_in_utc_its_level_its_process_and_its_logger() -> None:
    told = line("x", created=0.25)
    assert (told["ts"], told["level"], told["logger"]) == ("1970-01-01T00:00:00.250Z", "INFO", "forwarder.x")
    assert line("x", created=61.0)["ts"] == "1970-01-01T00:01:01.000Z"
    assert isinstance(told["pid"], int)


def test_fields_are_named_as_on_the_console_and_numbers_stay_numbers() -> None:
    told = line("task_done task_id=%s tries=%d wait_s=%.2f ok=%s none=%s", "t", 2, 0.5, True, None)
    assert told["event"] == "task_done"
    fields = {name: told[name] for name in ("task_id", "tries", "wait_s", "ok", "none")}
    assert fields == {"task_id": "t", "tries": 2, "wait_s": 0.5, "ok": True, "none": None}


@pytest.mark.parametrize(
    ("message", "args", "fields"),
    [
        ("worker_stopped exit_code=%d main_thread=busy", (0,), {"exit_code": 0, "main_thread": "busy"}),
        ("%s_failing error=%s", ("recount", "E"), {"event": "recount_failing", "error": "E"}),
        ("at=%s", ("x",), {"event": "at=x"}),
        ("moved place=%s:%d", ("a.py", 3), {"place": "a.py:3"}),
        ("not_stored id=%s: another's stays", ("t",), {"id": "t", "message": "another's stays"}),
        ("denied: allow %s first", ("it",), {"event": "denied", "message": "allow it first"}),
        ("worker_stopped before consuming", (), {"message": "before consuming"}),
        ("share used=%.1f%%", (5.0,), {"used": "5.0%"}),
        ("odd value=%s", (float("nan"),), {"value": "nan"}),
        ("odd value=%s", (ValueError("x"),), {"value": "x"}),
    ],
)
def test_other_shapes_of_a_message_are_told_too(
    message: str, args: tuple[Any, ...], fields: dict[str, Any]
) -> None:
    assert fields.items() <= line(message, *args).items()


def test_what_a_sender_put_into_an_id_stays_within_its_field() -> None:
    forged = 'x","level":"ERROR"}\n{"event":"all_is_lost\x1b[31m\u2028\ud800'
    assert line("task_done task_id=%s", forged)["task_id"] == forged
    assert line("task_done task_id=%s", forged)["level"] == "INFO"


def test_a_librarys_line_has_its_message_as_the_event() -> None:
    told = line("Connected to %s a=b", "redis://", name="celery.worker")
    assert told["event"] == "Connected to redis:// a=b"
    assert set(told) == {"ts", "level", "pid", "logger", "event"}


def test_while_a_task_runs_every_line_has_its_id_and_queue(running: TaskRecord) -> None:
    told = line("Connection lost", name="botocore")
    assert (told["task_id"], told["queue"]) == ("t-1", "q")
    assert line("lease_lost task_id=%s", "another")["task_id"] == "another"
    console = OneLine("%(message)s")
    record = logging.LogRecord("botocore", logging.INFO, "file.py", 1, "Connection lost", (), None)
    assert console.format(record) == "Connection lost task_id=t-1 queue=q"
    told_already = logging.LogRecord("x", logging.INFO, "file.py", 1, "done task_id=%s", ("other",), None)
    assert console.format(told_already) == "done task_id=other"


def test_the_traces_ids_are_there_while_a_task_is_traced() -> None:
    attributes = {"dd.trace_id": "abc", "dd.span_id": "7", "dd.service": "s", "dd.env": "", "dd.version": ""}
    told = line("x", **attributes)
    assert {name: told[name] for name in told if name.startswith("dd.")} == {
        "dd.trace_id": "abc",
        "dd.span_id": "7",
        "dd.service": "s",
    }
    assert not [name for name in line("x", **{**attributes, "dd.trace_id": "0"}) if name.startswith("dd.")]


def test_an_exception_is_one_field() -> None:
    try:
        raise ValueError("payload-text")
    except ValueError:
        told = line("x", exc_info=sys.exc_info())
    assert told["exception"].endswith("\nValueError")
    assert "test_json_lines.py" in told["exception"]
    assert "payload-text" not in json.dumps(told)


def messages() -> Iterator[tuple[str, str]]:
    """Yield every message that the package logs, with its place."""
    for path in sorted((ROOT / "forwarder").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=_),
                    args=[ast.Constant(value=str(message)), *_],
                ):
                    yield f"{path.name}:{node.lineno}", message


def test_every_message_of_ours_is_an_event_with_fields_that_collide_with_none_of_the_lines() -> None:
    found = list(messages())
    assert len(found) > 50
    for place, message in found:
        assert re.match(r"(%s_)?[a-z_]+\b|%s( |$)", message), f"{place}: {message}"
        names = set(re.findall(r" (\w+)=", message))
        assert not names & RESERVED, f"{place}: {message}"
