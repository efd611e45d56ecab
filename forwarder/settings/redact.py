"""What may be shown of a setting: everything but passwords, tokens and keys."""

from __future__ import annotations

import re

REDACTED = "***"

_USERINFO = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)?.*@", re.DOTALL)
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;]*(?:pass|pwd|secret|token|key|sig|auth|cred)[^=&;]*=)[^&;#]*", re.IGNORECASE
)


def shown(value: str) -> str:
    """Return the value as it is."""
    return value


def hidden(value: str) -> str:
    """Return nothing of the value, only that there is one."""
    return REDACTED if value else ""


def without_password(url: str) -> str:
    """Return the URL without user, password and secret query values.

    Everything up to the last ``@`` counts as user and password: in a password
    that was not percent-encoded, ``/`` and ``?`` would end it too early.
    """
    url = _USERINFO.sub(lambda match: f"{match[1] or ''}{REDACTED}@", url)
    return _SECRET_PARAMETER.sub(lambda match: match[1] + REDACTED, url)
