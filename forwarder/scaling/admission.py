"""How much work a worker may hold: so many messages, and so many bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Share of the memory limit that payloads and responses in flight may have. A byte of a payload was
#: measured to cost five bytes of memory while it is held (as it came from the broker, unpacked, decoded,
#: encoded for the inference server). So this is half of the limit, and a fifth of it is left to the worker
#: itself and to what exceeds the estimate, until the soft limit is reached.
INFLIGHT_SHARE = 0.1

#: What a message beyond the slots costs beside its body, in bytes of a payload, of which each costs five: a
#: task of 103 bytes that waits for its ETA was measured to take 12 kB.
EARLY_BYTES = 2500

#: A response that has grown to this waits for its turn while more than the budget is in flight, on prefork
#: while memory has no room for all. What is smaller weighs little (fifty, five copies each, are 62 MiB), and
#: would wait behind tasks whose hooks take long.
TURN_BYTES = 256 * 1024
TURN_S = 0.05


def default_bytes_max(limit_bytes: int) -> int:
    """Return the budget of payload and response bytes under a memory limit."""
    return max(1, int(limit_bytes * INFLIGHT_SHARE))


class Admission:
    """Answers the transports' question whether there is room; see :mod:`forwarder.brokers.room`.

    ``slots_max`` is the number of slots. Of them ``slots`` are open, by the
    autoscaler, and no more than ``cap``, by the memory guard; the others are not
    filled, and what runs in them is left alone. Bytes are the payloads', as the
    lease book counts them, and the responses', which are held here, and for each
    message beyond the slots, as one is that waits for its ETA, ``EARLY_BYTES``. A
    worker that holds nothing may always take one message, whatever its size; and of
    the responses that come, the one that began first always goes on.

    Used by the threads or greenlets of one process. Only ``hold_response`` blocks.
    """

    def __init__(
        self,
        *,
        slots_max: int,
        bytes_max: int,
        slots: int | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.slots_max = slots_max
        self.bytes_max = bytes_max
        self.slots = slots_max if slots is None else slots
        self.cap = slots_max
        #: How often a message was not taken because of the bytes.
        self.refused = 0
        self.response_bytes = 0
        #: The largest response that was held.
        self.response_bytes_peak = 0
        self._responses: dict[int, int] = {}
        self._held = self._payload_bytes = 0
        self._sleep = sleep

    def __repr__(self) -> str:
        return (
            f"<Admission slots={self.open_slots}/{self.slots_max} "
            f"response_bytes={self.response_bytes} bytes_max={self.bytes_max}>"
        )

    @property
    def open_slots(self) -> int:
        """Return how many slots may be filled."""
        return min(self.slots, self.cap)

    def room(self, *, free: int, held: int, payload_bytes: int) -> int:
        """Return how many of the ``free`` slots may be filled, beside ``held`` messages of so many bytes."""
        self._held, self._payload_bytes = held, payload_bytes
        if self.bytes_left(held=held, payload_bytes=payload_bytes) > 0:
            room = free - self.slots_max + min(self.slots, self.cap)
            return max(room, 0 if held else min(free, 1))
        self.refused += 1
        return 0 if held else min(free, 1)

    def bytes_left(self, *, held: int, payload_bytes: int) -> int:
        """Return what is left of the budget beside ``held`` messages of so many bytes; below 1 is nothing."""
        early_bytes = EARLY_BYTES * max(held - self.slots_max, 0)
        return self.bytes_max - payload_bytes - early_bytes - self.response_bytes

    def hold_response(self, number: int, within_s: float) -> None:
        """Note how many bytes of a response the calling slot holds, instead of what it held before.

        Blocks while more than the budget is in flight and it is not this response's turn: the
        rest of it stays with the inference server. Raises TimeoutError after ``within_s`` seconds.
        """
        slot = threading.get_ident()
        self.response_bytes += number - self._responses.get(slot, 0)
        self._responses[slot] = number
        while (
            number >= TURN_BYTES
            and self.bytes_left(held=self._held, payload_bytes=self._payload_bytes) < 0
            and next(iter(self._responses)) != slot
        ):
            if within_s <= 0:
                raise TimeoutError("no memory for the rest of the answer")
            self._sleep(TURN_S)
            within_s -= TURN_S

    def drop_response(self) -> None:
        """Note that the calling slot holds no response any more."""
        number = self._responses.pop(threading.get_ident(), 0)
        self.response_bytes -= number
        self.response_bytes_peak = max(self.response_bytes_peak, number)
