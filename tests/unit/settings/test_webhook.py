"""The form of a webhook secret."""

from __future__ import annotations

import base64

import pytest

from forwarder.settings import resolve
from forwarder.settings.webhook import signing_key

KEY = b"k" * 25
PADDED = "whsec_" + base64.b64encode(KEY).decode()


@pytest.mark.parametrize("secret", [PADDED, PADDED.rstrip("=")])
def test_the_setting_takes_what_signs_with_or_without_padding(secret: str) -> None:
    assert signing_key(secret) == KEY
    assert resolve({"callback_secret": secret}, {}, {}).settings.callback_secret == secret


def test_a_key_of_24_bytes_is_long_enough_and_one_of_23_is_not() -> None:
    assert signing_key("whsec_" + base64.b64encode(b"k" * 24).decode()) == b"k" * 24
    with pytest.raises(ValueError, match="at least 24 bytes"):
        signing_key("whsec_" + base64.b64encode(b"k" * 23).decode())
