"""``check``: the settings in effect, and whether a worker would work with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import click

from forwarder.cli.exits import OK, UNREACHABLE
from forwarder.cli.findings import Finding, findings
from forwarder.cli.options import SettingsCommand, with_settings
from forwarder.cli.probes import probes_for
from forwarder.settings import Resolved, Settings
from forwarder.settings.spec import value_of
from forwarder.settings.table import GROUPS, SPECS


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_settings
def check(resolved: Resolved, as_json: bool) -> int:
    """Show the settings in effect and try every service that a worker needs.

    Passwords and keys are not shown. Results in S3 are tried with a small object
    forwarder-check-ID, which is deleted again. Not tried, and so not proven:
    taking a task from the queue, firehose:PutRecordBatch, the receiver of callbacks,
    objects that payloads name. Exits with 0 if a worker would work, 2 if a
    setting can't work, 3 if a service does not answer as it must.
    """
    if not as_json:
        click.echo(settings_table(resolved))
    found = findings(probes_for(resolved.settings), secrets=_secrets(resolved.settings))
    click.echo(as_json_text(resolved, found) if as_json else verdict(found))
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


def as_json_text(resolved: Resolved, found: Sequence[Finding]) -> str:
    """Return the same as JSON: ``settings``, ``warnings``, ``services`` and ``ok``."""
    settings = {
        spec.field: {
            "value": spec.show(value_of(resolved.settings, spec.field)),
            "source": resolved.sources[spec.field],
        }
        for spec in SPECS
    }
    services = [
        {"name": finding.name, "ok": finding.ok, "detail": finding.detail, "remedy": finding.remedy}
        for finding in found
    ]
    ok = all(finding.ok for finding in found)
    return json.dumps(
        {"ok": ok, "settings": settings, "warnings": list(resolved.warnings), "services": services}, indent=2
    )


def _secrets(settings: Settings) -> list[str]:
    """Return what an error text must not repeat."""
    written = [urlsplit(url).password or "" for url in (settings.broker_url, settings.result_backend)]
    return [secret for password in written for secret in {password, unquote(password)} if secret]
