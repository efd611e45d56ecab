"""``dead``: the messages that were put aside, and what is to become of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from forwarder.brokers.dead_letters import (
    DEATH_HEADER,
    DeadLetter,
    DeadLetters,
    NoSuchLetter,
    NoSuchQueue,
    OpenedLetter,
)
from forwarder.cli import tasks
from forwarder.cli.exits import FAILED, OK
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.settings import Resolved, Settings

_LIMIT = 100
#: Celery's headers that quote the payload.
_PAYLOAD_HEADERS = ("argsrepr", "kwargsrepr")
_COLUMNS = ("at", "id", "code", "deliveries", "body_bytes", "queue", "task", "error")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group()
def dead() -> None:
    """List, show, requeue and purge tasks that were put aside.

    A message is put aside when it was delivered too often without an outcome,
    or can't be run at all; the sender has a FAILURE with the reason. Exit codes:
    0 success, 1 there is no such id, 2 wrong usage, 3 a service can't be reached.
    """


@dead.command("list", cls=SettingsCommand)
@click.option(
    "--limit", type=click.IntRange(min=1), default=_LIMIT, show_default=True, help="How many at most."
)
@_json
@with_settings
def list_(*, resolved: Resolved, limit: int, as_json: bool) -> int:
    """Print a line for each dead letter, the oldest first, queue by queue."""
    with _dead_letters(resolved.settings) as letters:
        found = letters.list(limit + 1)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(letter) for letter in found[:limit]], indent=2))
    else:
        click.echo(table(found[:limit]))
        if len(found) > limit:
            click.echo(f"there are more than {limit}: see --limit", err=True)
    return OK


@dead.command(cls=SettingsCommand)
@click.argument("letter_id", metavar="ID")
@click.option(
    "--payload", is_flag=True, help="Print the message's body too, and what its headers quote of it."
)
@_json
@with_settings
def show(*, resolved: Resolved, letter_id: str, payload: bool, as_json: bool) -> int:
    """Print the reason and the headers of one dead letter."""
    try:
        with _dead_letters(resolved.settings) as letters:
            opened = letters.show(letter_id)
    except NoSuchLetter:
        return _not_found([letter_id])
    click.echo(letter_json(opened, payload=payload) if as_json else letter_text(opened, payload=payload))
    return OK


@dead.command(cls=SettingsCommand)
@_ids
@click.option("--all", "all_", is_flag=True, help="Every dead letter.")
@with_settings
def requeue(*, resolved: Resolved, ids: Sequence[str], all_: bool) -> int:
    """Send dead letters back to their queues, to be run as new tasks.

    The FAILURE that was stored for each is forgotten, so that its sender sees
    PENDING again. A result that another message of the same id stored is kept:
    a worker finds it, and does not run the task again.
    """
    chosen = _chosen(ids, all_)
    with _dead_letters(resolved.settings) as letters:
        went = letters.requeue(chosen, forget_failure(resolved.settings))
    click.echo(f"requeued {len(went)}")
    return _not_found(set(ids) - {letter.id for letter in went})


@dead.command(cls=SettingsCommand)
@_ids
@click.option("--all", "all_", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Don't ask before all are deleted.")
@with_settings
def purge(*, resolved: Resolved, ids: Sequence[str], all_: bool, yes: bool) -> int:
    """Delete dead letters for good; the results that senders see stay."""
    chosen = _chosen(ids, all_)
    if chosen is None and not yes:
        queues = ", ".join(resolved.settings.queues)
        click.confirm(f"Delete every dead letter of {queues} for good?", abort=True, err=True)
    with _dead_letters(resolved.settings) as letters:
        deleted = letters.purge(chosen)
    click.echo(f"purged {len(deleted)}")
    return _not_found(set(ids) - {letter.id for letter in deleted})


def table(letters: Sequence[DeadLetter]) -> str:
    """Return the letters as aligned columns, or the words that there are none."""
    if not letters:
        return "no dead letters"
    rows = [_COLUMNS, *([_printable(getattr(letter, name)) for name in _COLUMNS] for letter in letters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def letter_text(opened: OpenedLetter, *, payload: bool) -> str:
    """Return a letter as lines: its reason, its headers, and its body if that is asked for."""
    reason = dataclasses.asdict(opened.letter)
    headers = {name: _as_json(value) for name, value in _shown_headers(opened, payload=payload).items()}
    width = max(len(name) for name in (*reason, *headers))
    lines = [f"{name:<{width}}  {_printable(value)}" for name, value in reason.items()]
    lines += ["", "headers", *(f"{_printable(name):<{width}}  {value}" for name, value in headers.items())]
    return "\n".join([*lines, "", opened.body] if payload else lines)


def letter_json(opened: OpenedLetter, *, payload: bool) -> str:
    """Return the same as JSON: ``letter``, ``headers`` and, if asked for, ``body``."""
    shown = {
        "letter": dataclasses.asdict(opened.letter),
        "headers": _shown_headers(opened, payload=payload),
    }
    return json.dumps({**shown, "body": opened.body} if payload else shown, indent=2, default=str)


def forget_failure(settings: Settings) -> Callable[[DeadLetter], None]:
    """Return what makes a letter's task PENDING again, where it is this letter that it failed with.

    Another failure is the outcome of another message with the same id, and stays.
    """
    backend: Any = tasks.impatient_app(settings).backend
    read = tasks.reader(settings)

    def forget(letter: DeadLetter) -> None:
        if letter.task_id is not None and tasks.error_code(read(letter.task_id)) == letter.code:
            with tasks.reaching("the result store"):
                backend.forget(letter.task_id)

    return forget


@contextmanager
def _dead_letters(settings: Settings) -> Iterator[DeadLetters]:
    """Give the dead letters of the settings' queues, and turn what goes wrong into an exit code."""
    letters = open_dead_letters(settings)
    try:
        with tasks.reaching("the broker"):
            yield letters
    except NoSuchQueue as error:
        raise click.ClickException(f"the queue {error} does not exist any more") from error
    finally:
        letters.close()


def open_dead_letters(settings: Settings) -> DeadLetters:
    """Return the dead letters where the settings' broker keeps them. Connects at the first use."""
    app = tasks.impatient_app(settings, results=False)
    if settings.broker_kind == "amqp":
        from forwarder.brokers.amqp.dead_letters import AmqpDeadLetters

        return AmqpDeadLetters(connect=app.connection_for_write, queues=settings.queues)
    if settings.broker_kind == "sqs":
        from forwarder.brokers.sqs.dead_letters import SqsDeadLetters
        from forwarder.cloud.session import AwsSession

        return SqsDeadLetters(
            client=lambda: AwsSession().client("sqs"),
            queue=settings.queues[0],
            queue_url=settings.sqs_url or "",
        )
    from forwarder.brokers.redis.dead_letters import RedisDeadLetters
    from forwarder.brokers.redis.transport import broker_client

    connection = app.connection_for_write()
    return RedisDeadLetters(client=lambda: broker_client(connection), queues=settings.queues)


def _chosen(ids: Sequence[str], all_: bool) -> Collection[str] | None:
    """Return the ids, None for all. Raises click.UsageError unless one of the two is given."""
    if bool(ids) == all_:
        raise click.UsageError("give either IDs or --all")
    return None if all_ else frozenset(ids)


def _not_found(ids: Collection[str]) -> int:
    for letter_id in sorted(ids):
        click.echo(f"forwarder: no dead letter has the id {letter_id}", err=True)
    return FAILED if ids else OK


def _shown_headers(opened: OpenedLetter, *, payload: bool) -> Mapping[str, Any]:
    hidden = (DEATH_HEADER,) if payload else (DEATH_HEADER, *_PAYLOAD_HEADERS)
    return {name: value for name, value in opened.headers.items() if name not in hidden}


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)


def _printable(value: Any) -> str:
    """Return a value without what a terminal would act on: ids and names are the sender's."""
    return "".join(char if char.isprintable() else "?" for char in str(value))
