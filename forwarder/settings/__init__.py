"""Settings: one table of them, one frozen object made from flags, environment, file and defaults."""

from __future__ import annotations

from forwarder.settings.errors import SettingsError
from forwarder.settings.model import EndpointIdentity, Settings
from forwarder.settings.resolving import Resolved, resolve

__all__ = ["EndpointIdentity", "Resolved", "Settings", "SettingsError", "resolve"]
