"""Where a task's callback goes and with which credentials: pure reading of the payload."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from forwarder.hooks.errors import HookError

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """One callback URL, taken apart once; nothing else reads the URL again.

    ``host`` is a name or a bare address (no brackets). ``trusted`` says that
    the operator wrote the URL. The path is not in ``repr``: paths and queries
    of webhooks are often secrets.
    """

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)
    trusted: bool

    @property
    def host_header(self) -> str:
        """Return the value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def find_target(payload: Any, *, default_url: str | None) -> Target | None:
    """Return where this task's callback goes, None for nowhere.

    The payload's ``callback_url`` goes before the operator's, which is trusted:
    whoever configures http://127.0.0.1 means it. Raises HookError for a URL
    that can't be used.
    """
    own_url = payload.get("callback_url") if isinstance(payload, Mapping) else None
    if own_url:
        return parse_target(own_url, trusted=False)
    if default_url:
        return parse_target(default_url, trusted=True)
    return None


def parse_target(url: Any, *, trusted: bool) -> Target:
    """Take the URL apart. Raises HookError when it isn't an http or https URL with a host."""
    try:
        parts = parse_url(url) if isinstance(url, str) else None
    except LocationParseError:
        parts = None
    if parts is None or parts.scheme not in PORTS or not parts.host:
        raise HookError("callback_url is not an http or https URL")
    if parts.auth is not None:
        raise HookError("callback_url holds credentials; they belong into callback_auth")
    return Target(
        scheme=parts.scheme,
        host=parts.host.strip("[]"),
        port=parts.port or PORTS[parts.scheme],
        path=parts.request_uri,
        trusted=trusted,
    )


def authorization(payload: Any, *, user_id: str | None) -> dict[str, str]:
    """Return the Authorization header, or nothing.

    The payload's ``callback_auth`` is ``{"kind": "basic", "username": …,
    "password": …}``; ``kind`` and ``password`` may be missing. Any other kind
    (the ancestor names ``mtls``) and any other shape count as absent: then the
    endpoint's user id is the user name, with an empty password, and without
    one the callback goes out without credentials.
    """
    auth = payload.get("callback_auth") if isinstance(payload, Mapping) else None
    if isinstance(auth, Mapping) and auth.get("kind", "basic") == "basic":
        username, password = auth.get("username"), auth.get("password", "")
        if isinstance(username, str) and isinstance(password, str):
            return _basic(username, password)
    return _basic(user_id, "") if user_id else {}


def _basic(username: str, password: str) -> dict[str, str]:
    # UTF-8 as RFC 7617 recommends.
    return {"authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
