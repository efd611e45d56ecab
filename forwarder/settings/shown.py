"""The settings in effect as they may be shown: secrets redacted, each with where it came from."""

from __future__ import annotations

from forwarder.settings.resolving import Resolved
from forwarder.settings.spec import value_of
from forwarder.settings.table import SPECS


def shown(resolved: Resolved) -> dict[str, dict[str, str]]:
    """Return each field's ``value`` as text, empty for none, and its ``source``."""
    return {
        spec.field: {
            "value": spec.show(value_of(resolved.settings, spec.field)),
            "source": resolved.sources[spec.field],
        }
        for spec in SPECS
    }
