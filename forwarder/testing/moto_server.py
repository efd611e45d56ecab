"""moto's server with conditional writes that hold: of several at the same moment one is taken, as by S3.

moto looks whether the object is there and then writes it, each request in a thread of its own, so
two deliveries of one task could both be told that theirs was the first outcome.
"""

from __future__ import annotations

from threading import Lock
from typing import Any


def main() -> None:
    """Serve until a signal ends it; the command line is moto's. Blocks."""
    from moto.s3.responses import S3Response
    from moto.server import main as serve

    put_object = S3Response.put_object
    one_at_a_time = Lock()

    def put_in_turn(self: Any) -> Any:
        with one_at_a_time:
            return put_object(self)

    S3Response.put_object = put_in_turn  # type: ignore[method-assign]
    serve()


if __name__ == "__main__":
    main()
