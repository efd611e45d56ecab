"""Signatures after Standard Webhooks, so that a receiver knows who called.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from standardwebhooks import Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret, and no secret
SECRET_BYTES_MIN = 24


class Signer:
    """Signs webhook bodies with one symmetric secret (``whsec_`` and base64).

    Raises ValueError, without the secret in it, for a secret of another form or
    of fewer than 24 bytes.
    """

    def __init__(self, secret: str) -> None:
        encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        # The library takes any base64 and skips what is none.
        if not secret.startswith(SECRET_PREFIX) or len(key) < SECRET_BYTES_MIN:
            raise ValueError(f"expected {SECRET_PREFIX} and the base64 of at least {SECRET_BYTES_MIN} bytes")
        self._webhook = Webhook(key)

    def headers(self, *, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the three headers; ``timestamp_s`` is the time of this try, since the epoch.

        ``body`` is UTF-8.
        """
        moment = datetime.fromtimestamp(timestamp_s, UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": self._webhook.sign(message_id, moment, body.decode()),
        }
