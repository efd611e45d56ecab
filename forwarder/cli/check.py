"""``check``: the settings in effect, and whether a worker would work with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import click

from forwarder.cli.exits import OK, UNREACHABLE
from forwarder.cli.findings import Finding, findings
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.scaling.container import container_limit_bytes
from forwarder.scaling.descriptors import Allowed, Need, allowed, need
from forwarder.scaling.peak import Peak, peak
from forwarder.settings import Resolved, Settings
from forwarder.settings.shown import shown
from forwarder.settings.spec import value_of
from forwarder.settings.table import GROUPS, SPECS


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--live", is_flag=True, help="Ask only whether the worker on this machine is alive.")
@with_settings
def check(resolved: Resolved, as_json: bool, live: bool) -> int:
    """Show the settings in effect and try every service that a worker needs.

    Passwords and keys are not shown. Results in S3 are tried with a small object
    forwarder-check-ID, which is deleted again. Not tried, and so not proven:
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
        click.echo(settings_table(resolved))
        click.echo(memory_text(most))
        click.echo(descriptors_text(need(resolved.settings), allowed()))
    found = findings(probes_for(resolved.settings), secrets=_secrets(resolved.settings))
    click.echo(as_json_text(resolved, found, most) if as_json else verdict(found))
    return OK if all(finding.ok for finding in found) else UNREACHABLE


def settings_table(resolved: Resolved) -> str:
    """Return every setting with its value and source, aligned, and the warnings below."""
    rows = [
        (spec.field, spec.show(value_of(resolved.settings, spec.field)) or "-", resolved.sources[spec.field])
        for spec in SPECS
    ]
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = []
    remaining = iter(rows)
    for heading, specs in GROUPS.items():
        lines.append(heading)
        for key, value, source in (next(remaining) for _ in specs):
            lines.append(f"  {key:<{key_width}}  {value:<{value_width}}  {source}")
    lines += [f"warning: {warning}" for warning in resolved.warnings]
    return "\n".join(lines)


def memory_text(most: Peak) -> str:
    """Return the most memory that the settings allow, and a warning where that passes the limit."""
    lines = ["Memory", *(f"  {line}" for line in most.lines())]
    if not most.fits:
        lines.append(
            "warning: that passes the memory limit, and a worker that reaches it is killed; `forwarder tune` "
            "says which of these bounds your tasks need"
        )
    return "\n".join(lines)


def descriptors_text(needed: Need, limits: Allowed) -> str:
    """Return the most file descriptors that a process needs, and a warning where it may not have them."""
    number = f"{needed.number:,}"
    lines = ["File descriptors", f"  {number}  {needed.arithmetic}"]
    if not limits.suffices(needed.number):
        lines.append(
            f"warning: that passes the limit of {limits.hard:,}, and a full worker fails its tasks; "
            "raise the hard limit of open files (nofile)"
        )
    elif needed.number > limits.soft:
        lines.append(f"  {limits.soft:,} are allowed now; a worker raises that when it starts")
    return "\n".join(lines)


def verdict(found: Sequence[Finding]) -> str:
    """Return a line for each service and one for all of them together."""
    width = max(len(finding.name) for finding in found)
    lines = [
        f"{finding.word:<4}  {finding.name:<{width}}  {finding.detail}"
        + (f"; to mend: {finding.remedy}" if finding.remedy else "")
        for finding in found
    ]
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
