"""The worker without its delivery guarantees: what benchmarks.guarantees compares with.

The same forwarding, inference client and result store on stock Celery and kombu: no lease
book, stock intake, stock acks, and no look for a stored result. Never a thing to deploy.
"""

from __future__ import annotations

import os
import sys

from forwarder import pool


def main() -> int:
    """Run until SIGTERM; the pool is that of the environment, the settings as the worker's."""
    name = pool.prepare([], os.environ)
    from forwarder.app import Composition
    from forwarder.forwarding import task
    from forwarder.settings import resolve
    from forwarder.telemetry import logs

    settings = resolve({}, os.environ, {}).settings
    logs.configure(settings.log_level)
    composition = Composition(settings)
    app = composition.celery_app()
    app.conf.update(
        broker_transport="redis",
        broker_transport_options={"max_connections": settings.concurrency + 10},
        worker_consumer="celery.worker.consumer:Consumer",
    )
    vars(task)["find_committed"] = lambda *_: None
    task.ForwardTask.Request = "celery.worker.request:Request"
    worker = app.Worker(
        pool=name,
        concurrency=settings.concurrency,
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        loglevel=settings.log_level,
    )
    worker.start()
    return 0


if __name__ == "__main__":
    sys.exit(main())
