"""``run``: the worker."""

from __future__ import annotations

import click

from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.settings import Resolved


@click.command(cls=SettingsCommand)
@with_settings
def run(resolved: Resolved) -> int:
    """Take tasks from the queue and forward them until told to stop (the default command)."""
    # Late, so that --help and a refused setting wait for nothing.
    from forwarder import worker
    from forwarder.pool import PoolError

    for warning in resolved.warnings:
        click.echo(f"forwarder: warning: {warning}", err=True)
    try:
        return worker.run(resolved)
    except PoolError as error:
        raise click.UsageError(str(error)) from error
