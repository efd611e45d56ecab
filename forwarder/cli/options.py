"""The settings as options of a command: read, resolved, and handed to the command as one object."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from forwarder import compat
from forwarder.settings import Resolved, kinds, resolve
from forwarder.settings.files import CONFIG_ENVIRON, CONFIG_FLAG, read_mapping
from forwarder.settings.spec import Spec
from forwarder.settings.table import BY_FIELD, GROUPS

_VISIBILITY_HELP = (
    f"Redis database, and the visibility timeout of older workers on it: {', '.join(compat.VISIBILITIES)}."
)
_ANCESTOR = "The ancestor's command line"

Decorator = Callable[[Callable[..., int]], Callable[..., int]]


class GroupedOption(click.Option):
    """An option that ``--help`` lists under a heading of its own."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class SettingsCommand(click.Command):
    """A command whose ``--help`` lists the settings by group, after its own options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        self.write_options(ctx, formatter, heading="Options")

    def write_options(self, ctx: click.Context, formatter: click.HelpFormatter, *, heading: str) -> None:
        """Write the command's own options under ``heading``, then the settings group by group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "heading", heading), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def with_options(options: Sequence[Decorator]) -> Decorator:
    """Return what gives a command its own options, to be listed in this order."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def with_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command every setting's option; it is called with ``resolved`` in their place.

    Resolving raises SettingsError, which ends the program with exit code 2.
    """

    @functools.wraps(command)
    def resolving(**parameters: Any) -> int:
        flags = {field: parameters.pop(field) for field in BY_FIELD}
        config = parameters.pop("config")
        ancestor = compat.AncestorFlags(
            assignments=parameters.pop("assignments"),
            task_visibility=parameters.pop("task_visibility"),
            broker_type=parameters.pop("broker_type"),
            backend_protocol=parameters.pop("backend_protocol"),
        )
        given = {field: value for field, value in flags.items() if value not in (None, ())}
        return command(resolved=resolve_all(given, ancestor, config, os.environ), **parameters)

    for option in reversed([*_setting_options(), *_ancestor_options()]):
        option(resolving)
    return resolving


def resolve_all(
    flags: Mapping[str, Any], ancestor: compat.AncestorFlags, config: str | None, environ: Mapping[str, str]
) -> Resolved:
    """Return the settings from this worker's own form of the command line or the ancestor's.

    Reads the configuration file; raises SettingsError.
    """
    file_name = config or environ.get(CONFIG_ENVIRON)
    document = read_mapping(Path(file_name)) if file_name else {}
    if not compat.is_ancestor(document, ancestor):
        return resolve(flags, environ, document, file_sources=dict.fromkeys(document, f"file {file_name}"))
    return compat.resolve(document, ancestor, flags, environ, file_name=file_name or "none")


def _setting_options() -> list[Decorator]:
    config = click.option(
        CONFIG_FLAG,
        metavar="FILE",
        help=f"YAML, TOML or JSON file of settings, keyed by field name. [environment: {CONFIG_ENVIRON}]",
    )
    return [config] + [_option(spec, heading) for heading, specs in GROUPS.items() for spec in specs]


def _option(spec: Spec, heading: str) -> Decorator:
    names = ", ".join((spec.environ, *spec.other_environ))
    # ``--auto`` is ``--auto true``.
    alone = {"is_flag": False, "flag_value": "true"} if spec.kind is kinds.BOOLEAN else {}
    return click.option(
        spec.flag,
        *spec.other_flags,
        spec.field,
        cls=GroupedOption,
        heading=heading,
        metavar=spec.kind.metavar,
        multiple=spec.kind.repeatable,
        help=f"{spec.meaning} [environment: {names}; default: {spec.shown_default}]",
        **alone,
    )


def _ancestor_options() -> list[Decorator]:
    grouped = functools.partial(click.option, cls=GroupedOption, heading=_ANCESTOR)
    return [
        grouped(
            "--set",
            "assignments",
            multiple=True,
            metavar="PATH=VALUE",
            help="Override a value of the --config file, such as forwarder.async.user_port=5005.",
        ),
        grouped("--task-visibility", metavar="NAME", help=_VISIBILITY_HELP),
        grouped("--broker-type", metavar="redis|sqs", help="Broker; sqs is the default with --sqs-url."),
        grouped("--backend-protocol", metavar="redis|s3", help="Result store; s3 is the default."),
    ]
