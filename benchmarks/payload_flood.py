"""Large payloads, or answers, together far more than the memory, on a gevent worker in a real memory cgroup.

``python -m benchmarks.payload_flood`` runs the whole: 200 x 5 MB in 512 MiB, as the worker is, then
with neither budget nor soft limit, which the kernel kills; and the same of answers. With
``--soft-limit`` a steady load of long tasks under the soft limit alone. Needs root, for the cgroup.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import redis

from benchmarks.memory_burst import LOOK_S, kills, memory_cgroup
from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

#: Neither a budget nor a soft limit: what a worker without admission by bytes does.
SABOTAGE = {"FORWARDER_INFLIGHT_BYTES_MAX": str(2**40), "FORWARDER_MEMORY_HIGH_PERCENT": "100"}
#: The soft limit alone.
NO_BUDGET = {"FORWARDER_INFLIGHT_BYTES_MAX": str(2**40)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """``tasks`` payloads of ``payload_bytes``, each ``sleep_s`` at the model server, on ``slots`` slots.

    Answers have ``answer_bytes``; 0 are small ones.
    """

    tasks: int = 200
    payload_bytes: int = 5_000_000
    answer_bytes: int = 0
    limit_mb: int = 512
    slots: int = 50
    sleep_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flooded:
    """What came of it: tasks done and inference calls made, kills, the largest share of the limit."""

    done: int
    asked: int
    in_flight_peak: int
    kills: int
    peak_share: float
    seconds: float
    log: str


def run(
    flood: Flood,
    *,
    valkey: Valkey,
    model_server: ModelServer,
    broker_url: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float,
) -> Flooded:
    """Send all, then run one worker until all is done, or it is killed, or the time is over.

    The broker is ``valkey`` if no other is named; results go to its database 1. All of ``valkey`` is
    emptied in the end.
    Raises NoCgroup where none can be made. Blocks.
    """
    queue, results = f"flood-{uuid.uuid4().hex[:8]}", valkey.url.removesuffix("/0") + "/1"
    broker_url = broker_url or valkey.url
    sender = Producer(broker_url=broker_url, backend=results, queue=queue)
    for number in range(flood.tasks):
        behaviour: dict[str, float] = {"sleep_s": flood.sleep_s}
        if flood.answer_bytes:
            behaviour["huge_bytes"] = flood.answer_bytes
        args = {"id": str(number), "behaviour": behaviour, "text": "x" * flood.payload_bytes}
        sender.send({"args": args})
    sender.close()
    settings = {
        **model_server.env,
        "FORWARDER_BROKER_URL": broker_url,
        "FORWARDER_RESULT_BACKEND": results,
        "FORWARDER_QUEUES": queue,
        "FORWARDER_CONCURRENCY": str(flood.slots),
        **(env or {}),
    }
    model_server.control(reset=True)
    with (
        memory_cgroup(flood.limit_mb) as limit,
        redis.Redis.from_url(results) as store,
        Worker(pool="gevent", env=settings) as worker,
    ):
        assert limit.group is not None
        (limit.group / "cgroup.procs").write_text(str(worker.pid))  # before it has imported anything
        began_s, peak, done = time.monotonic(), 0.0, 0
        while done < flood.tasks and worker.alive and time.monotonic() - began_s < timeout_s:
            time.sleep(LOOK_S)
            peak = max(peak, (limit.used_bytes() or 0) / limit.bytes)
            done = int(store.dbsize())
        stats = model_server.stats()
        flooded = Flooded(
            done=done, asked=stats["requests"], in_flight_peak=stats["peak"], kills=kills(limit),
            peak_share=peak, seconds=time.monotonic() - began_s, log=worker.log(),
        )  # fmt: skip
        worker.kill()
        store.flushall()
    return flooded


def main() -> int:
    """Print one JSON object a run; return 0 if nothing was killed or lost but by the sabotages."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=200)
    options.add_argument("--soft-limit", action="store_true", help="300 x 1 MB, 20 s each, in 290 MiB")
    options.add_argument("--timeout", type=float, default=900.0, help="seconds for each run")
    given = options.parse_args()
    payloads = Flood(tasks=given.tasks)
    answers = Flood(tasks=given.tasks, payload_bytes=100, answer_bytes=payloads.payload_bytes)
    both: tuple[tuple[str, dict[str, str]], ...] = (("forwarder", {}), ("sabotaged", SABOTAGE))
    runs = [(flood, name, env) for flood in (payloads, answers) for name, env in both]
    if given.soft_limit:
        steady = Flood(tasks=300, payload_bytes=1_000_000, limit_mb=290, sleep_s=20)
        runs = [(steady, "soft limit alone", NO_BUDGET)]
    wrong = 0
    with Valkey() as valkey, ModelServer() as model_server:
        for flood, name, env in runs:
            flooded = run(flood, valkey=valkey, model_server=model_server, env=env, timeout_s=given.timeout)
            shown = {key: value for key, value in asdict(flooded).items() if key != "log"}
            sys.stdout.write(json.dumps({"name": name, **asdict(flood), **shown}) + "\n")
            safe = (flooded.done, flooded.kills) == (flood.tasks, 0)
            wrong += safe if env is SABOTAGE else not safe
    return min(wrong, 1)


if __name__ == "__main__":
    raise SystemExit(main())
