"""``submit``: one task, sent as any Celery producer would send it."""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NoReturn

import click

from forwarder.cli import tasks
from forwarder.cli.exits import FAILED, OK
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.settings import Resolved

_STANDARD_INPUT = "-"


@click.command(cls=SettingsCommand)
@click.argument("payload", required=False)
@click.option("--file", "path", metavar="FILE", help="Read the payload from a file; - is standard input.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Print the result too."
)
@click.option(
    "--expires",
    "expires_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Refuse the task when it has waited longer.",
)
@click.option(
    "--priority", type=click.IntRange(0, 255), metavar="N", help="Priority, where the broker has it."
)
@click.option("--task-id", metavar="ID", help="Id of the task; a random one otherwise.")
@with_settings
def submit(
    *,
    resolved: Resolved,
    payload: str | None,
    path: str | None,
    wait_s: float | None,
    expires_s: float | None,
    priority: int | None,
    task_id: str | None,
) -> int:
    """Send one task and print its id; with --wait its result as well, as JSON.

    PAYLOAD is a JSON object such as '{"args": {"x": 1}}'; - reads it from
    standard input. Exits with 0, with 1 if the task failed or has not ended in
    time, with 3 if the broker or the results can't be reached.
    """
    body = read_payload(payload, path)
    from forwarder.forwarding.task import TASK_NAMES  # late: it brings Celery, which --help can do without

    task_id = task_id or str(uuid.uuid4())
    with tasks.reaching("the broker"):
        # Sending needs no results: Celery would subscribe to them and wait for a lost store.
        tasks.impatient_app(resolved.settings, results=False).send_task(
            TASK_NAMES[0],
            args=(body, time.time()),
            task_id=task_id,
            queue=resolved.settings.queues[0],
            expires=expires_s,
            priority=priority,
            # Without these Celery copies the payload into the message's headers, which monitors show.
            argsrepr="(...)",
            kwargsrepr="{}",
        )
    click.echo(task_id)
    if wait_s is None:
        return OK
    meta = tasks.wait(tasks.reader(resolved.settings), task_id, wait_s)
    if meta is None or not tasks.ended(meta):
        click.echo(f"forwarder: no result after {wait_s:g} s", err=True)
        return FAILED
    click.echo(tasks.result_text(meta))
    return tasks.exit_code(meta)


def read_payload(argument: str | None, path: str | None) -> dict[str, Any]:
    """Return the payload from the argument, a file or standard input.

    Raises click.UsageError for anything but one JSON object; the message never
    repeats the payload.
    """
    if (argument is None) == (path is None):
        raise click.UsageError("give the payload either as PAYLOAD or with --file")
    try:
        if _STANDARD_INPUT in (argument, path):
            text = sys.stdin.buffer.read().decode()
        else:
            text = Path(path).read_text(encoding="utf-8") if path is not None else str(argument)
    except OSError as error:
        raise click.UsageError(f"--file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError("the payload is not UTF-8") from error
    try:
        payload = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = (
            f" at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise click.UsageError(f"the payload is not JSON{where}") from None
    if not isinstance(payload, dict):
        raise click.UsageError("the payload is not a JSON object")
    return payload


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's
