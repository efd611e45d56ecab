"""What is known about one setting, and how its value is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from forwarder.settings import redact
from forwarder.settings.kinds import Kind
from forwarder.settings.model import Settings

_ENDPOINT = "endpoint_"


@dataclass(frozen=True, slots=True)
class Spec:
    """One setting as the operator meets it.

    ``field`` is its key in a configuration file and its name in Settings
    (``endpoint_x`` is ``endpoint.x`` there). ``redacted`` returns what may be
    shown of a value. A ``gentle`` setting answers a bad value with a warning
    and its default. ``default_words`` describes a default of none.
    """

    field: str
    flag: str
    environ: str
    kind: Kind
    meaning: str
    other_flags: tuple[str, ...] = ()
    other_environ: tuple[str, ...] = ()
    redacted: Callable[[str], str] = redact.shown
    gentle: bool = False
    default_words: str = "none"

    @property
    def title(self) -> str:
        """Return the names of the setting as errors and warnings print them."""
        return f"{self.flag} ({self.environ})"

    @property
    def default(self) -> object:
        """Return the typed default."""
        return value_of(Settings(), self.field)

    @property
    def optional(self) -> bool:
        """Return whether the setting may be left without a value."""
        return self.default in (None, ()) or isinstance(self.default, Mapping)

    @property
    def shown_default(self) -> str:
        """Return the default in words."""
        return render(self.default) or self.default_words

    def assignment(self, value: object) -> str:
        """Return the line of an env file that sets the value."""
        return f"{self.environ}={render(value)}"

    def show(self, value: object) -> str:
        """Return the value as text that may be printed, secrets redacted."""
        return self.redacted(render(value))


def value_of(settings: Settings, field: str) -> object:
    """Return the value that a spec's field names."""
    if field.startswith(_ENDPOINT):
        return getattr(settings.endpoint, field.removeprefix(_ENDPOINT))
    return getattr(settings, field)


def environment(settings: Settings, specs: Iterable[Spec]) -> dict[str, str]:
    """Return the variables that give another process these of the settings."""
    return {spec.environ: render(value_of(settings, spec.field)) for spec in specs}


def render(value: object) -> str:
    """Return a typed value in the form that its flag takes; empty text for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return json.dumps(dict(value)) if value else ""
    return str(value)
