"""Signatures after Standard Webhooks, so that a receiver knows who called.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import string
from datetime import UTC, datetime
from urllib.parse import quote

from standardwebhooks import Webhook

from forwarder.settings.webhook import signing_key

#: Of an id, what a header holds as it is: visible ASCII but "%", so that two ids never become one.
SAFE = string.punctuation.replace("%", "")


class Signer:
    """Signs webhook bodies with one symmetric secret (``whsec_`` and base64).

    Raises ValueError, without the secret in it, for a secret of another form or
    of fewer than 24 bytes.
    """

    def __init__(self, secret: str) -> None:
        # The key and not the secret: the library takes any base64 and skips what is none.
        self._webhook = Webhook(signing_key(secret))

    def headers(self, *, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the three headers; ``timestamp_s`` is the time of this try, since the epoch.

        In the id what no header holds is percent-encoded, as UTF-8, and signed like that: spaces,
        line breaks, whatever is not ASCII, and "%". ``body`` is UTF-8.
        """
        message_id = quote(message_id, safe=SAFE)
        moment = datetime.fromtimestamp(timestamp_s, UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": self._webhook.sign(message_id, moment, body.decode()),
        }
