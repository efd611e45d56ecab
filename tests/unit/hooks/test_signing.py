"""Signatures after Standard Webhooks."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from forwarder.hooks.signing import Signer

# The example of the specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_signature_is_that_of_the_reference_library() -> None:
    headers = Signer(SECRET).headers(
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp_s=1614265330, body=b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("changed", [("b", 1, b"body"), ("a", 2, b"body"), ("a", 1, b"other")])
def test_the_signature_covers_id_time_and_body(changed: tuple[str, int, bytes]) -> None:
    assert signature("a", 1, b"body") != signature(*changed)


@pytest.mark.parametrize(
    ("task_id", "header"),
    [
        ("f016cb68-26ac-41bc-b365-a04cff093148", "f016cb68-26ac-41bc-b365-a04cff093148"),
        ("order/7:a_b.c~d+e=f@g|h", "order/7:a_b.c~d+e=f@g|h"),
        (" lead", "%20lead"),
        ("trail ", "trail%20"),
        ("line\r\nbreak", "line%0D%0Abreak"),
        ("f\u00fcr", "f%C3%BCr"),
        ("\u4efb\u52a1", "%E4%BB%BB%E5%8A%A1"),
        ("%20lead", "%2520lead"),
    ],
)
def test_an_id_is_signed_as_its_header_says_it(task_id: str, header: str) -> None:
    headers = Signer(SECRET).headers(message_id=task_id, timestamp_s=1614265330, body=b"{}")
    assert headers["webhook-id"] == header
    moment = datetime.fromtimestamp(1614265330, UTC)
    assert headers["webhook-signature"] == Webhook(SECRET).sign(header, moment, "{}")


def signature(message_id: str, timestamp_s: int, body: bytes) -> str:
    headers = Signer(SECRET).headers(message_id=message_id, timestamp_s=timestamp_s, body=body)
    return headers["webhook-signature"]


def test_padding_of_the_secret_may_be_left_out() -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 25).decode()
    unpadded = secret.rstrip("=")
    assert unpadded != secret
    signed = [Signer(form).headers(message_id="a", timestamp_s=1, body=b"") for form in (secret, unpadded)]
    assert signed[0] == signed[1]


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_c2hvcnQ=",
        SECRET.removeprefix("whsec_"),
        "whsec_not base64 at all, not at all, no",
    ],
)
def test_a_secret_that_is_none_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64") as raised:
        Signer(secret)
    assert secret in ("", "whsec_") or secret not in str(raised.value)
