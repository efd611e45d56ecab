"""The worker of the soak: ``python -m forwarder`` with what the soak switches on.

``SOAK_CHURN=1`` makes a boto3 session, an assumed role and a Firehose client for each task,
as this worker's ancestor did. ``SOAK_TRIM_S=N`` gives what was freed back to the system
every N seconds, in each process. Both are patched in here: the product knows nothing of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence

from forwarder import pool  # the standard library only: the patch comes with prepare

prepare = pool.prepare


def prepare_and_change(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Patch for gevent where that is the pool, then put the switches in."""
    chosen = prepare(argv, environ)
    if environ.get("SOAK_CHURN"):
        churn()
    if environ.get("SOAK_TRIM_S"):
        trim_every(float(environ["SOAK_TRIM_S"]))
    return chosen


def churn() -> None:
    """Let every record have a session, a role and a client of its own."""
    import time

    from forwarder.cloud import session
    from forwarder.forwarding.ports import Completion
    from forwarder.hooks import logging
    from forwarder.hooks.firehose_record import build_record

    def deliver(self: logging.FirehoseHook, completion: Completion) -> bool:
        role_arn = os.environ["FORWARDER_FIREHOSE_ROLE_ARN"]
        build = session.firehose_client_builder(
            session=session.AwsSession(), role_arn=role_arn, max_pool_connections=50
        )
        record = build_record(completion, endpoint=self._endpoint, emitted_at=time.time())
        build().client.put_record(DeliveryStreamName=self._stream, Record={"Data": record})
        return True

    logging.FirehoseHook.deliver = deliver  # type: ignore[method-assign]


def trim_every(seconds: float) -> None:
    """Call glibc's malloc_trim again and again, in this process and in each that it forks."""
    import ctypes

    trim = ctypes.CDLL(None).malloc_trim

    def start() -> None:
        def round_and_again() -> None:
            trim(0)
            start()

        timer = threading.Timer(seconds, round_and_again)
        timer.daemon = True
        timer.start()

    start()
    os.register_at_fork(after_in_child=start)


if __name__ == "__main__":
    pool.prepare = prepare_and_change
    from forwarder.__main__ import main

    main()
