"""The command line: which command, and what its outcome means as an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import cast

import click

from forwarder import __version__
from forwarder.cli.exits import FAILED, OK, WRONG_USAGE
from forwarder.cli.options import SettingsCommand
from forwarder.settings import SettingsError
from forwarder.settings.aws import unify_region

_DEFAULT = "run"

#: What each command does, in a line. A command is the object of its name in
#: ``forwarder.cli.<name>``, imported when it is used: a worker needs no demo.
_COMMANDS = {
    "run": "The worker (the default command).",
    "demo": "The whole path on one machine, with nothing to install.",
    "check": "Show the effective settings and whether a worker would work with them.",
    "tune": "Measure payloads and the inference server, recommend settings.",
    "loadtest": "Send tasks of a given shape, watch the worker, write a report.",
    "submit": "Send one task.",
    "result": "Fetch the result of a task, or wait for it.",
    "dead": "List, show, requeue and purge tasks that were put aside.",
}


class Commands(click.Group):
    """The commands; ``run`` when the first argument names none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order in which they are explained."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command."""
        if cmd_name not in _COMMANDS:
            return None
        return cast(click.Command, getattr(importlib.import_module(f"forwarder.cli.{cmd_name}"), cmd_name))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front of arguments that start with an option."""
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "--version")):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options of the default command: the settings."""
        super().format_options(ctx, formatter)
        run = cast(SettingsCommand, self.get_command(ctx, _DEFAULT))
        run.write_options(click.Context(run, parent=ctx), formatter, heading=f"Options of {_DEFAULT}")


@click.group(cls=Commands, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="forwarder")
def commands() -> None:
    """Queue to inference server: forwards tasks, stores results, runs hooks.

    Without a command the worker runs. Exit codes: 0 success, 1 the work failed,
    2 wrong usage or settings, 3 a service could not be reached.
    """


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (``argv`` without the program's name).

    Messages for the operator go to standard error, one line where a setting is
    wrong. Blocks for as long as the command does.
    """
    unify_region(os.environ)
    try:
        code = commands.main(args=argv, prog_name="forwarder", standalone_mode=False)
    except SettingsError as error:
        print(f"forwarder: {error}", file=sys.stderr)
        return WRONG_USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return FAILED
    return code if isinstance(code, int) else OK
