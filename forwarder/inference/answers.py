"""One HTTP/1.1 answer, read from whatever bytes come by llhttp, the parser of Node.js.

httptools binds it; nothing is parsed here. Here is what a parser leaves to its
user: the bounds, the end of an answer that has no length, interim answers, and
bytes that nobody asked for.
"""

from __future__ import annotations

import httptools

from forwarder.forwarding.errors import InferenceUnreachable, InvalidResponse, ResponseTooLarge
from forwarder.forwarding.ports import Spool

#: In a row, without a byte of body between: headers, interim answers, chunk extensions, trailers.
FRAMING_BYTES_MAX = 64 * 1024


class AnswerReader:
    """Takes the bytes of one answer as they come, until it is ``whole``.

    ``reusable`` then tells whether the connection can carry another request.
    Close it in any case: it and its parser refer to each other, and that cycle
    would keep the body alive until the garbage collector comes by.

    With a ``spool``, an answer with a status below 400 may be too large for
    memory: ``spill`` it after each ``feed``.
    """

    def __init__(self, *, body_bytes_max: int, spool: Spool | None = None) -> None:
        self.status = 0  # until the head is complete
        self.headers: dict[str, str] = {}
        self.body = b""
        self.whole = False
        self.reusable = False
        self.spilled_bytes = 0
        self._spool = spool
        self._received = bytearray()
        self._body_bytes_max = body_bytes_max
        self._framing_bytes = 0
        self.on_body = self._received.extend
        self._parser = httptools.HttpResponseParser(self)

    @property
    def received_bytes(self) -> int:
        """Return how many bytes of the body there are in memory."""
        return len(self._received)

    def close(self) -> None:
        """Let go of the parser. The answer stays."""
        del self._parser

    def feed(self, data: bytes) -> None:
        """Take what was read.

        Raises InvalidResponse for what is not HTTP, ResponseTooLarge as soon as the
        body passes the bound or announces that it will.
        """
        had_bytes = len(self._received)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None  # no callback raises, but a signal's handler may
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.whole:
                raise InvalidResponse("the inference server's answer is not HTTP") from None
        self._framing_bytes = 0 if len(self._received) > had_bytes else self._framing_bytes + len(data)
        self._check()

    def spill(self, *, within_s: float) -> None:
        """Move what memory should not hold to the spool. Blocks and raises as the spool does."""
        spool = self._spool
        if spool is None or self.status >= 400 or not self._received:
            return
        if self.spilled_bytes or len(self._received) > spool.above_bytes:
            spool.write(self._received, within_s=within_s)
            self.spilled_bytes += len(self._received)
            self._received.clear()
            self.body = b""

    def end(self) -> None:
        """Note that the server closed; raise InferenceUnreachable unless that is how this answer ends."""
        if self.status and "content-length" not in self.headers and "transfer-encoding" not in self.headers:
            self._finish()
        elif self.status or self._framing_bytes:
            raise InferenceUnreachable("the inference server's answer broke off")
        else:
            raise InferenceUnreachable("the inference server closed the connection before answering")

    def on_message_begin(self) -> None:
        """Begin an answer. After a whole one nobody asked for it: an answer to the next request it is not."""
        self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; the last of a name counts. Trailers are left out."""
        if not self.status:
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")

    def on_headers_complete(self) -> None:
        """Take the status."""
        if not self.whole:
            self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """End the answer, or the interim one (1xx) that comes before it."""
        if self.whole:
            return
        if 100 <= self.status < 200:
            self.status = 0
            self.headers.clear()
        else:
            self._finish()
            self.reusable = self._parser.should_keep_alive()

    def _finish(self) -> None:
        self.whole = True
        self.body = bytes(self._received)

    def _check(self) -> None:
        if 0 < self.status < 100 or self._framing_bytes > FRAMING_BYTES_MAX:
            raise InvalidResponse("the inference server's answer is not HTTP")
        spool = self._spool
        limit = self._body_bytes_max if spool is None or self.status >= 400 else spool.bytes_max
        if len(self._received) + self.spilled_bytes > limit:
            raise ResponseTooLarge(f"the inference server's answer passes the limit of {limit} bytes")
        announced = int(self.headers.get("content-length", 0))  # the parser has seen that it is a number
        if announced > limit:
            raise ResponseTooLarge(
                f"the inference server's answer of {announced} bytes passes the limit of {limit}"
            )
