"""How much memory one more prefork process takes: read from the children of a real worker, at work."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery.result import AsyncResult

from forwarder.scaling.process_memory import exact
from forwarder.settings import Settings
from forwarder.testing.processes import StartFailed
from forwarder.testing.producer import Producer
from forwarder.testing.services import NotInstalled, Valkey
from forwarder.testing.worker import Worker
from forwarder.tuning.child import CHILDREN, TASKS_MIN, Child, NotMeasured, payloads
from forwarder.tuning.samples import Sample

POLL_S = 0.05


def measure(samples: Sequence[Sample], *, env: Mapping[str, str], within_s: float, ddtrace: bool) -> Child:
    """Return what a prefork child has for itself once it has worked.

    A worker with the environment, between a broker and a result store of its own,
    asks the inference server with samples, one for each child at a time. No hook runs
    and nothing is written to a ``destination_path``. Blocks for ``within_s`` and
    some seconds at most. Raises NotMeasured.
    """
    until_s = time.monotonic() + within_s
    try:
        with Valkey() as valkey:
            own = {
                "FORWARDER_BROKER_URL": valkey.database(0),
                "FORWARDER_RESULT_BACKEND": valkey.database(1),
                "FORWARDER_CONCURRENCY": str(CHILDREN),
                "FORWARDER_DRAIN_TIMEOUT_S": "1",
                "FORWARDER_HTTP_PORT": "0",
            }
            with Worker(pool="prefork", env={**env, **own}, ddtrace=ddtrace) as worker:
                worker.wait_ready()
                done = _work(samples, valkey, until_s)
                if done < TASKS_MIN:
                    raise NotMeasured(f"{done} of {TASKS_MIN} tasks were done in time; raise --max-seconds")
                found = [exact(pid) for pid in worker.children()]
    except NotInstalled as error:
        raise NotMeasured(str(error)) from None
    except StartFailed:  # its message has the log in it
        raise NotMeasured("a worker of its own did not start") from None
    sizes = [memory.unique_bytes for memory in found if memory is not None]
    if not sizes:
        raise NotMeasured("the processes' memory can't be read here")
    return Child(max(sizes), done)


def _work(samples: Sequence[Sample], valkey: Valkey, until_s: float) -> int:
    """Send tasks, as many at a time as there are children; return how many were done in time. Blocks."""
    sender = Producer(broker_url=valkey.database(0), backend=valkey.database(1), queue=Settings().queues[0])
    todo = payloads(samples)
    running: list[AsyncResult[Any]] = []
    done = 0
    try:
        while time.monotonic() < until_s:
            for result in [result for result in running if result.ready()]:
                result.forget()  # a large one should not stay with the store
                running.remove(result)
                done += 1
            running += [sender.send(payload) for payload in itertools.islice(todo, CHILDREN - len(running))]
            if not running:
                break
            time.sleep(POLL_S)
    finally:
        sender.close()
    return done
