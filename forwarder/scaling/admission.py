"""How much work a worker may hold: so many messages, and so many bytes."""

from __future__ import annotations

import threading

#: Share of the memory limit that payloads and responses in flight may have. A byte of a payload was
#: measured to cost five bytes of memory while it is held (as it came from the broker, unpacked, decoded,
#: encoded for the inference server). So this is half of the limit, and a fifth of it is left to the worker
#: itself and to what exceeds the estimate, until the soft limit is reached.
INFLIGHT_SHARE = 0.1


def default_bytes_max(limit_bytes: int) -> int:
    """Return the budget of payload and response bytes under a memory limit."""
    return max(1, int(limit_bytes * INFLIGHT_SHARE))


class Admission:
    """Answers the transports' question whether there is room; see :mod:`forwarder.brokers.room`.

    ``slots_max`` is the number of slots. Of them ``slots`` are open, by the
    autoscaler, and no more than ``cap``, by the memory guard; the others are not
    filled, and what runs in them is left alone. Bytes are the payloads', as the
    lease book counts them, and the responses', which are held here. A worker that
    holds nothing may always take one message, whatever its size.

    Used by the threads or greenlets of one process. Nothing here blocks.
    """

    def __init__(self, *, slots_max: int, bytes_max: int, slots: int | None = None) -> None:
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
        if self.bytes_left(payload_bytes) > 0:
            room = free - self.slots_max + min(self.slots, self.cap)
            return max(room, 0 if held else min(free, 1))
        self.refused += 1
        return 0 if held else min(free, 1)

    def bytes_left(self, payload_bytes: int) -> int:
        """Return what is left of the budget beside payloads of so many bytes; less than 1 is nothing."""
        return self.bytes_max - payload_bytes - self.response_bytes

    def hold_response(self, number: int) -> None:
        """Note how many bytes of a response the calling slot holds, instead of what it held before."""
        slot = threading.get_ident()
        self.response_bytes += number - self._responses.get(slot, 0)
        self._responses[slot] = number

    def drop_response(self) -> None:
        """Note that the calling slot holds no response any more."""
        number = self._responses.pop(threading.get_ident(), 0)
        self.response_bytes -= number
        self.response_bytes_peak = max(self.response_bytes_peak, number)
