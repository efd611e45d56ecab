"""From which size on a body goes by way of the disk: as it is set, or by the sizes that come."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

log = logging.getLogger(__name__)

#: Bytes of a body by reference up to which it may stay in memory. Reading it takes twice as much
#: for a moment, and so does the answer that may come beside it: a task's memory stays under 1 MiB.
IN_MEMORY_MAX = 256 * 1024
STEP_BYTES = 64 * 1024
#: Inputs by which the threshold is chosen, each time so many have come.
INPUTS = 20


def above_for(sizes: Sequence[int], *, default: int) -> int:
    """Return the bytes above which a body goes by way of the disk: none of these, if memory may hold them."""
    largest = max(sizes)
    return max(1, math.ceil(largest / STEP_BYTES)) * STEP_BYTES if largest <= IN_MEMORY_MAX else default


class Threshold:
    """The bytes above which a body goes by way of the disk.

    With ``follows`` it is chosen anew by each ``INPUTS`` inputs of this process, and is
    ``default`` where one of them is too large for memory. Never less: answers go by it, too.
    """

    def __init__(self, default: int, *, follows: bool = False) -> None:
        self.bytes = default
        self._default = default
        self._follows = follows
        self._sizes: list[int] = []

    def saw(self, size_bytes: int) -> None:
        """Note an input that was read. Does not block."""
        if not self._follows:
            return
        self._sizes.append(size_bytes)
        if len(self._sizes) < INPUTS:
            return
        sizes, self._sizes = self._sizes, []
        before, self.bytes = self.bytes, max(self._default, above_for(sizes, default=self._default))
        if self.bytes != before:
            log.info(
                "auto_staging above_bytes=%d before=%d largest=%d of=%d",
                self.bytes, before, max(sizes), len(sizes),
            )  # fmt: skip
