"""``result``: what became of a task."""

from __future__ import annotations

import click

from forwarder.cli import tasks
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.settings import Resolved


@click.command(cls=SettingsCommand)
@click.argument("task_id")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for the end of the task."
)
@with_settings
def result(*, resolved: Resolved, task_id: str, wait_s: float | None) -> int:
    """Print the state of a task and, below it, its result as JSON.

    Exits with 0 if the task succeeded, with 1 if it failed or has not ended,
    with 3 if the results can't be reached. An unknown task counts as PENDING.
    """
    if not task_id.strip():
        raise click.UsageError("TASK_ID is empty")
    meta = tasks.wait(tasks.reader(resolved.settings), task_id, wait_s or 0.0)
    click.echo(tasks.state_of(meta))
    if meta is not None:
        click.echo(tasks.result_text(meta))
    return tasks.exit_code(meta)
