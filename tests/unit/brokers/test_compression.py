"""Compressed bodies are read as kombu packs them, up to a bound."""

from __future__ import annotations

import pytest
from kombu import compression

from forwarder.brokers.compression import bound

LIMIT = 1000


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = vars(compression)["_decoders"]
    monkeypatch.setattr(compression, "_decoders", dict(kept))
    bound(LIMIT)


@pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma"])
@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_body_within_the_limit_is_read(method: str, size: int) -> None:
    packed, content_type = compression.compress(b"x" * size, method)
    assert compression.decompress(packed, content_type) == b"x" * size


@pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma"])
def test_a_body_that_unpacks_to_more_is_refused_before_it_is_unpacked(method: str) -> None:
    packed, content_type = compression.compress(b"x" * (LIMIT + 1), method)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        compression.decompress(packed, content_type)


@pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma"])
def test_a_body_that_breaks_off_is_refused(method: str) -> None:
    packed, content_type = compression.compress(b"x" * LIMIT, method)
    with pytest.raises((ValueError, EOFError)):
        compression.decompress(packed[:-3], content_type)
