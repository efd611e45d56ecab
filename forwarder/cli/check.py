"""``check``: the settings in effect, and whether a worker would work with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import click

from forwarder.cli.exits import OK, UNREACHABLE
from forwarder.cli.findings import Finding, findings
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.cli.wrapping import terminal_width, wrapped
from forwarder.scaling.container import container_limit_bytes
from forwarder.scaling.descriptors import Allowed, Need, allowed, need
from forwarder.scaling.peak import Peak, peak
from forwarder.settings import Resolved, Settings
from forwarder.settings.coherence import DEFAULT
from forwarder.settings.shown import shown
from forwarder.settings.spec import value_of
from forwarder.settings.table import GROUPS, SPECS

#: Spaces before the further lines of what is wider than the terminal.
_INDENT = 2
#: What stands before the words in a line of the memory.
_UNIT = "MiB  "


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--live", is_flag=True, help="Ask only whether the worker on this machine is alive.")
@with_settings
def check(resolved: Resolved, as_json: bool, live: bool) -> int:
    """Show the settings in effect and try every service that a worker needs.

    Passwords and keys are not shown. Redis and results in S3 are tried with a small
    key or object forwarder-check-ID, which is deleted again. Not tried, and so not proven:
    taking a task from the queue, firehose:PutRecordBatch, the receiver of callbacks,
    objects that payloads name. Exits with 0 if a worker would work, 2 if a
    setting can't work, 3 if a service does not answer as it must.

    With --live it asks nothing but /livez of the worker that has the same
    settings (--http-port), for an exec probe, and exits with 0 if that is
    alive, 1 if it is not, 3 if nobody answers.
    """
    if live:
        from forwarder.cli.live import ask

        return ask(resolved.settings)
    # The import takes longer than a probe of a worker that is alive.
    from forwarder.cli.probes import probes_for

    most = peak(resolved.settings, container_limit_bytes(override_mb=resolved.settings.memory_limit_mb))
    if not as_json:
        width = terminal_width()
        click.echo(settings_table(resolved, width=width))
        click.echo(memory_text(most, width=width))
        click.echo(descriptors_text(need(resolved.settings), allowed(), width=width))
    found = findings(probes_for(resolved.settings), secrets=_secrets(resolved.settings))
    click.echo(as_json_text(resolved, found, most) if as_json else verdict(found, width=width))
    return OK if all(finding.ok for finding in found) else UNREACHABLE


def settings_table(resolved: Resolved, *, width: int | None = None) -> str:
    """Return every setting with its value and source, aligned, and the warnings below.

    Of a row that is wider than the terminal the source stands below the value.
    """
    rows = [
        (spec.field, spec.show(value_of(resolved.settings, spec.field)) or "-", resolved.sources[spec.field])
        for spec in SPECS
    ]
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    if width is not None:  # most sources are one word: one long value moves no other row's below
        value_width = max(0, min(value_width, width - key_width - len(f"      {DEFAULT}")))
    lines = []
    remaining = iter(rows)
    for heading, specs in GROUPS.items():
        lines.append(heading)
        for key, value, source in (next(remaining) for _ in specs):
            row = f"  {key:<{key_width}}  {value:<{value_width}}  {source}"
            if width is None or len(row) <= width:
                lines.append(row)
            else:
                below = max(_INDENT, min(key_width + 4, width - len(source)))
                lines += [f"  {key:<{key_width}}  {value}", " " * below + source]
    for warning in resolved.warnings:
        lines += wrapped(f"warning: {warning}", width, indent=_INDENT)
    return "\n".join(lines)


def memory_text(most: Peak, *, width: int | None = None) -> str:
    """Return the most memory that the settings allow, and a warning where that passes the limit."""
    lines = ["Memory"]
    for line in most.lines():
        lines += wrapped(f"  {line}", width, indent=line.index(_UNIT) + len(_UNIT) + 2)
    if not most.fits:
        lines += wrapped(
            "warning: that passes the memory limit, and a worker that reaches it is killed; `forwarder tune` "
            "says which of these bounds your tasks need",
            width,
            indent=_INDENT,
        )
    return "\n".join(lines)


def descriptors_text(needed: Need, limits: Allowed, *, width: int | None = None) -> str:
    """Return the most file descriptors that a process needs, and a warning where it may not have them."""
    number = f"{needed.number:,}"
    lines = ["File descriptors", *wrapped(f"  {number}  {needed.arithmetic}", width, indent=len(number) + 4)]
    if not limits.suffices(needed.number):
        lines += wrapped(
            f"warning: that passes the limit of {limits.hard:,}, and a full worker fails its tasks; "
            "raise the hard limit of open files (nofile)",
            width,
            indent=_INDENT,
        )
    elif needed.number > limits.soft:
        lines.append(f"  {limits.soft:,} are allowed now; a worker raises that when it starts")
    return "\n".join(lines)


def verdict(found: Sequence[Finding], *, width: int | None = None) -> str:
    """Return a line for each service, wrapped where it is wider, and one for all of them together."""
    name_width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        line = f"{finding.word:<4}  {finding.name:<{name_width}}  {finding.detail}"
        line += f"; to mend: {finding.remedy}" if finding.remedy else ""
        lines += wrapped(line, width, indent=6)
    failed = [finding.name for finding in found if not finding.ok]
    lines.append(f"a worker would not work: {', '.join(failed)}" if failed else "a worker would work")
    return "\n".join(lines)


def as_json_text(resolved: Resolved, found: Sequence[Finding], most: Peak) -> str:
    """Return the same as JSON: ``settings``, ``memory``, ``descriptors``, ``services`` and more."""
    services = [
        {"name": finding.name, "ok": finding.ok, "detail": finding.detail, "remedy": finding.remedy}
        for finding in found
    ]
    ok = all(finding.ok for finding in found)
    memory = {
        "peak_bytes": most.bytes,
        "limit_bytes": most.limit.bytes,
        "limit_source": most.limit.source,
        "fits": most.fits,
        "terms": [{"bytes": term.bytes, "words": term.words} for term in most.terms],
    }
    needed, limits = need(resolved.settings), allowed()
    descriptors = {
        "needed": needed.number,
        "arithmetic": needed.arithmetic,
        "soft_limit": limits.soft,
        "hard_limit": limits.hard,
        "fits": limits.suffices(needed.number),
    }
    report = {
        "ok": ok,
        "settings": shown(resolved),
        "warnings": list(resolved.warnings),
        "memory": memory,
        "descriptors": descriptors,
        "services": services,
    }
    return json.dumps(report, indent=2)


def _secrets(settings: Settings) -> list[str]:
    """Return what an error text must not repeat."""
    written = [urlsplit(url).password or "" for url in (settings.broker_url, settings.result_backend)]
    return [secret for password in written for secret in {password, unquote(password)} if secret]
