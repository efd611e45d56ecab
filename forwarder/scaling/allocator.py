"""glibc's allocator, told to give large blocks back; with another allocator nothing happens."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

#: https://man7.org/linux/man-pages/man3/mallopt.3.html
M_MMAP_THRESHOLD = -3

#: Bytes from which on a block is a mapping of its own, gone once it is freed. Left alone, glibc raises
#: its threshold to the largest block that was freed, up to 32 MiB, and payloads of that size then leave
#: holes: 5 MB each in 512 MiB peaked at 442 MiB, and with this at 348 MiB.
LARGE_BYTES = 512 * 1024


def give_large_blocks_back() -> None:
    """Give each large block back to the system when it is freed; call it before there are any."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BYTES)


def trimmer() -> Callable[[], object]:
    """Return what gives all freed memory back to the system: glibc's malloc_trim, elsewhere nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: trim(0)) if trim is not None else (lambda: None)
