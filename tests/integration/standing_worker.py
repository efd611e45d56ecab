"""The worker, whose main thread stands still at SIGUSR2, as in a call that never returns.

Until the file ``STAND_FILE`` is gone; busy with Python code if that says ``spins``, else asleep. What
takes half a minute in a worker takes seconds here.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

#: Seconds after which a loop that does not turn is taken for stuck, instead of ``LOOP_STILL_S``.
STILL_S = 3.0


def main() -> None:
    from forwarder import pool

    pool.prepare(sys.argv[1:], os.environ)

    from forwarder import watch
    from forwarder.cli.main import main as run_command_line
    from forwarder.telemetry import watchdog
    from forwarder.telemetry.native import unpatched

    watch.LOOP_STILL_S = STILL_S
    watchdog.ROUND_S = 0.5
    sleep = unpatched("time", "sleep")
    file = Path(os.environ["STAND_FILE"])

    def stand_still() -> None:
        while file.exists():
            if file.read_text() == "spins":
                sum(number for number in range(1_000_000))
            else:
                sleep(0.1)

    def begin(*_: Any) -> None:
        if os.environ["CELERY_WORKER_POOL"] == "gevent":
            import gevent

            gevent.spawn(stand_still)
        else:
            stand_still()

    signal.signal(signal.SIGUSR2, begin)
    raise SystemExit(run_command_line())


if __name__ == "__main__":
    main()
