"""Flag, environment, file, default: from text to one Settings."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from forwarder.settings import coherence
from forwarder.settings.coherence import DEFAULT
from forwarder.settings.errors import SettingsError
from forwarder.settings.files import CONFIG_ENVIRON
from forwarder.settings.model import AUTO_SLOTS_MAX, EndpointIdentity, Settings
from forwarder.settings.spec import Spec
from forwarder.settings.table import BY_FIELD, SPECS

#: The container's entry point takes it away from a worker; what ``kubectl exec`` runs still has it.
IMAGE_ENVIRON = "FORWARDER_DDTRACE"

_PREFIX = "FORWARDER_"

#: Kubernetes sets these in every pod for a Service that is called "forwarder".
_KUBERNETES_SERVICE = re.compile(r"FORWARDER_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The settings, where each came from, and what the operator should hear about them.

    ``sources`` has an entry for every field of the table: ``flag --x``,
    ``environment X``, ``file f`` or ``default``.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was given, and where."""

    text: str
    source: str


def resolve(
    flags: Mapping[str, str | Sequence[str]],
    environ: Mapping[str, str],
    file: Mapping[str, object],
    *,
    file_sources: Mapping[str, str] | None = None,
) -> Resolved:
    """Return the settings from flags, then environment, then file, then defaults.

    ``flags`` and ``file`` are keyed by field name; ``file_sources`` says where
    an entry of ``file`` came from, ``file`` where it is silent. An empty
    environment variable counts as not set; an empty flag leaves an optional
    setting without a value. Raises SettingsError at the first value that can't
    work, alone or together with the others.
    """
    _refuse_unknown_keys(file)
    warnings = _unknown_environment(environ)
    values: dict[str, Any] = {}
    sources = dict.fromkeys(BY_FIELD, DEFAULT)
    for spec in SPECS:
        given = _given(spec, flags, environ, file, file_sources or {})
        if given is None:
            continue
        try:
            values[spec.field] = _parse(spec, given)
        except SettingsError as error:
            if not spec.gentle:
                raise
            warnings.append(f"{error}; going on with {spec.shown_default}")
        else:
            sources[spec.field] = given.source
    settings = _settings(values)
    if settings.auto and settings.autoscale is None:
        least = settings.concurrency
        settings = dataclasses.replace(settings, autoscale=(max(least, AUTO_SLOTS_MAX), least))
        sources["autoscale"] = BY_FIELD["auto"].flag
    warnings += coherence.check(settings)
    return Resolved(settings=settings, sources=sources, warnings=tuple(warnings))


def given_fields(flags: Mapping[str, str | Sequence[str]], environ: Mapping[str, str]) -> frozenset[str]:
    """Return the fields that a flag or the environment gives a value, whatever a file says."""
    given = {spec.field: _given(spec, flags, environ, {}, {}) for spec in SPECS}
    return frozenset(field for field, value in given.items() if value is not None and value.text)


def _given(
    spec: Spec,
    flags: Mapping[str, str | Sequence[str]],
    environ: Mapping[str, str],
    file: Mapping[str, object],
    file_sources: Mapping[str, str],
) -> _Given | None:
    """Return the value that wins, or None when nobody gave one."""
    if (flag := flags.get(spec.field)) is not None:
        return _Given(flag if isinstance(flag, str) else ",".join(flag), f"flag {spec.flag}")
    for name in (spec.environ, *spec.other_environ):
        if environ.get(name):
            return _Given(environ[name], f"environment {name}")
    if (value := file.get(spec.field)) is not None:
        return _Given(_as_text(value, spec), file_sources.get(spec.field, "file"))
    return None


def _as_text(value: object, spec: Spec) -> str:
    """Return a file's typed value in the form that the flag takes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and spec.kind.listed:
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping | list):
        return json.dumps(value, default=str)
    return str(value)


def _parse(spec: Spec, given: _Given) -> object:
    if given.text == "" and spec.optional:
        return spec.default
    try:
        return spec.kind.parse(given.text)
    except (ValueError, RecursionError):
        # The cause is left out: its message may repeat a secret.
        expected = (f"flag {spec.flag}", f"environment {spec.environ}")
        title = spec.title if given.source in expected else f"{spec.title}, from {given.source}"
        raise SettingsError(title, spec.redacted(given.text), spec.kind.accepted) from None


def _settings(values: Mapping[str, Any]) -> Settings:
    endpoint_fields = {f"endpoint_{field.name}": field.name for field in dataclasses.fields(EndpointIdentity)}
    endpoint = {endpoint_fields[key]: value for key, value in values.items() if key in endpoint_fields}
    rest = {key: value for key, value in values.items() if key not in endpoint_fields}
    return Settings(endpoint=EndpointIdentity(**endpoint), **rest)


def _refuse_unknown_keys(file: Mapping[str, object]) -> None:
    for key in file:
        if key not in BY_FIELD:
            near = get_close_matches(key, BY_FIELD, n=1)
            hint = f"did you mean {near[0]}?" if near else "the field names of docs/settings.md"
            raise SettingsError("key in the configuration file", key, hint)


def _unknown_environment(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each FORWARDER_ variable that means nothing: most are misspelt."""
    known = {name: name for spec in SPECS for name in (spec.environ, *spec.other_environ)}
    known |= {CONFIG_ENVIRON: CONFIG_ENVIRON, IMAGE_ENVIRON: IMAGE_ENVIRON}
    # Somebody may also have made a name of the field's; the variable that is meant comes with it.
    meant = {f"{_PREFIX}{spec.field.upper()}": spec.environ for spec in SPECS} | known
    warnings = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in known or _KUBERNETES_SERVICE.fullmatch(name):
            continue
        near = get_close_matches(name, meant, n=1)
        warnings.append(f"{name} is not a setting" + (f"; did you mean {meant[near[0]]}?" if near else ""))
    return warnings
