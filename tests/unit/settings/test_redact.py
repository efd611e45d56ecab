"""What may be shown of a secret: nothing."""

from __future__ import annotations

import pytest

from forwarder.settings.redact import hidden, without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("amqp://user:hunter2@host//", "amqp://***@host//"),
        ("redis://:hun/ter?2#@host/0", "redis://***@host/0"),
        ("redis://:hun@ter2@host/0", "redis://***@host/0"),
        ("redis://:hun\nter2@host/0", "redis://***@host/0"),
        ("user:hunter2@host", "***@host"),
        ("rediss://host/0?ssl_cert_reqs=required", "rediss://host/0?ssl_cert_reqs=required"),
        ("redis://host/0?password=hunter2&x=1", "redis://host/0?password=***&x=1"),
        ("https://host/hook?x=1&Api_Key=hunter2", "https://host/hook?x=1&Api_Key=***"),
        ("https://host/hook?X-Amz-Signature=hunter2#top", "https://host/hook?X-Amz-Signature=***#top"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_password_and_tokens(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(("value", "shown"), [("whsec_x", "***"), ("", "")])
def test_a_secret_shows_only_that_it_is_there(value: str, shown: str) -> None:
    assert hidden(value) == shown
