"""The form of a webhook secret, for the setting and for whoever signs with it."""

from __future__ import annotations

import base64

_PREFIX = "whsec_"
# Standard Webhooks, "Signature scheme": at least 24 random bytes.
# https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
_KEY_BYTES_MIN = 24

ACCEPTED = f"{_PREFIX} and the base64 of at least {_KEY_BYTES_MIN} bytes"


def signing_key(secret: str) -> bytes:
    """Return the key that a secret spells; base64's padding may be missing.

    Raises ValueError, without the secret in it, for a secret of another form.
    """
    encoded = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or len(key) < _KEY_BYTES_MIN:
        raise ValueError(f"expected {ACCEPTED}")
    return key
