"""Bounds on what a compressed message may grow to: kombu unpacks a body before anybody can look at it."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from kombu import compression

#: Content type of kombu to the maker of a decompressor that can stop early.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


def bound(bytes_max: int) -> None:
    """Make kombu refuse, in this process, a body that unpacks to more than ``bytes_max`` bytes.

    For gzip, bzip2 and lzma. Other ways to compress need packages that a worker
    does not have, unless somebody installs them.
    """
    for content_type, unpacker in _UNPACKERS.items():
        packers: Any = compression.get_encoder(content_type)
        compression.register(packers[0], _bounded(unpacker, bytes_max), content_type)


def _bounded(unpacker: Callable[[], Any], bytes_max: int) -> Callable[[bytes], bytes]:
    def decompress(body: bytes) -> bytes:
        machine = unpacker()
        unpacked: bytes = machine.decompress(body, bytes_max + 1)
        if len(unpacked) > bytes_max:
            raise ValueError(f"the body unpacks to more than {bytes_max} bytes")
        if not machine.eof:
            raise ValueError("the compressed body breaks off")
        return unpacked

    return decompress
