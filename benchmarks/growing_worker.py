"""A worker whose children have their size only once they work: ours, or stock Celery with its autoscaler.

Each process takes ``GROWING_MB`` of memory with its first task and keeps it. With
``GROWING_CGROUP`` the worker joins that memory cgroup first, as in a container. Run it as
``python -m benchmarks.growing_worker [--stock] [arguments]``; settings come from the environment.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery, signals

TASK = "forwarder.forward"
PAGE_BYTES = 4096

_grown: list[bytearray] = []


def grow(**_: object) -> None:
    """Take the memory, once a process; every page is written, so that it counts."""
    if not _grown:
        memory = bytearray(int(os.environ["GROWING_MB"]) * 1024 * 1024)
        memory[::PAGE_BYTES] = b"\x01" * len(range(0, len(memory), PAGE_BYTES))
        _grown.append(memory)


def stock(arguments: Sequence[str]) -> None:
    """Run stock Celery with a plain task."""
    app = Celery("stock", broker=os.environ["FORWARDER_BROKER_URL"])
    app.conf.update(
        result_backend=os.environ["FORWARDER_RESULT_BACKEND"],
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_default_queue=os.environ["FORWARDER_QUEUES"],
    )

    @app.task(name=TASK)
    def forward(payload: Mapping[str, Any]) -> Any:
        body = json.dumps(payload["args"]).encode()
        request = urllib.request.Request(os.environ["FORWARDER_PREDICT_URL"], data=body)
        with urllib.request.urlopen(request, timeout=60.0) as response:
            return json.loads(response.read())

    app.worker_main(["worker", "-P", "prefork", "--without-gossip", "-l", "INFO", *arguments])


def main() -> None:
    """Join the cgroup, then be the worker."""
    if cgroup := os.environ.get("GROWING_CGROUP"):
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    signals.task_prerun.connect(grow, weak=False)
    if sys.argv[1:2] == ["--stock"]:
        stock(sys.argv[2:])
    else:
        runpy.run_module("forwarder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
