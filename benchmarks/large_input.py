"""Bodies larger than the memory, by way of the disk, on both pools in a real memory cgroup.

``python -m benchmarks.large_input`` sends 1 GiB by reference in 512 MiB, takes an answer of 1 GiB
to its destination, and runs eight inputs of 64 MiB at a time; it prints one JSON object for each
and checks every byte by its CRC-32. The last one keeps the input in memory, which the kernel
kills. Memory a task is the growth of the resident peak over
a warm process, divided by the tasks that ran in it. Needs root, for the cgroup.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.endless import Endless, summed
from benchmarks.memory_burst import LOOK_S, kills, memory_cgroup
from forwarder.scaling.container import Limit
from forwarder.testing.producer import Producer
from forwarder.testing.services import Valkey
from forwarder.testing.worker import Worker

MIB = 1024 * 1024
WARM_BYTES = 2 * MIB
TIMEOUT_S = 280.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """``tasks`` at a time, each an input or an answer of ``size_bytes``; ``in_memory`` is the sabotage."""

    name: str
    tasks: int
    size_bytes: int
    answers: bool = False
    in_memory: bool = False


class Bench:
    """One worker of a pool under a memory limit, and its peaks."""

    def __init__(self, *, pool: str, worker: Worker, producer: Producer, endless: Endless) -> None:
        self._pool = pool
        self._worker = worker
        self._producer = producer
        self._endless = endless

    def send_to_its_death(self, shape: Shape, limit: Limit) -> dict[str, Any]:
        """Send a task and wait until the kernel kills somebody for it, or for the timeout."""
        self._producer.send({"url": f"s3://bucket/{shape.size_bytes}"})
        began_s = time.monotonic()
        while not kills(limit) and time.monotonic() - began_s < TIMEOUT_S:
            time.sleep(LOOK_S)
        self._worker.kill()
        return {"seconds": round(time.monotonic() - began_s, 1)}

    def send(self, shape: Shape) -> list[Any]:
        """Send a shape's tasks and wait for all results. Raises Celery's TimeoutError."""
        payload: dict[str, Any] = {"url": f"s3://bucket/{shape.size_bytes}"}
        if shape.answers:
            payload = {"args": 1, "destination_path": f"s3://bucket/out/{shape.size_bytes}"}
        sent = [self._producer.send(payload) for _ in range(shape.tasks)]
        return [result.get(timeout=TIMEOUT_S)["result"] for result in sent]

    def run(self, shape: Shape) -> dict[str, Any]:
        """Run a shape on a warm worker and return what was seen. Blocks."""
        before = {pid: _peak_reset(pid) for pid in self._pids()}
        began_s, cpu_s = time.monotonic(), self._cpu_s()
        results = self.send(shape)
        grown = [_status(pid, "VmHWM") - rss for pid, rss in before.items() if psutil.pid_exists(pid)]
        in_one = shape.tasks if self._pool == "gevent" else 1
        expected = summed(shape.size_bytes)
        put = self._endless.stats()["put"].get(f"/bucket/out/{shape.size_bytes}")
        return {
            "whole": put == expected if shape.answers else all(result == expected for result in results),
            "mib_a_task": round(max(grown) / in_one / MIB, 2),
            "seconds": round(time.monotonic() - began_s, 1),
            "cpu_s": round(self._cpu_s() - cpu_s, 1),
        }

    def _pids(self) -> list[int]:
        return [self._worker.pid] if self._pool == "gevent" else self._worker.children()

    def _cpu_s(self) -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self._pids())


@contextmanager
def running(shape: Shape, *, pool: str, slots: int, limit_mb: int) -> Iterator[tuple[Bench, Limit, Path]]:
    """Run services, and a worker in a cgroup; give bench, limit and staging folder."""
    queue = f"large-{uuid.uuid4().hex[:8]}"
    with Valkey() as valkey, Endless() as endless, tempfile.TemporaryDirectory() as folder:
        settings = {
            **endless.env,
            "FORWARDER_BROKER_URL": valkey.url,
            "FORWARDER_RESULT_BACKEND": valkey.database(1),
            "FORWARDER_QUEUES": queue,
            "FORWARDER_CONCURRENCY": str(slots),
            "FORWARDER_STAGE_FOLDER": folder,
        }
        if shape.in_memory:
            settings["FORWARDER_STAGE_ABOVE_BYTES"] = str(2**32)
        if shape.answers:
            settings["FORWARDER_PREDICT_URL"] += f"/{shape.size_bytes}"
        producer = Producer(broker_url=valkey.url, backend=valkey.database(1), queue=queue)
        with memory_cgroup(limit_mb) as limit, Worker(pool=pool, env=settings) as worker:
            assert limit.group is not None
            (limit.group / "cgroup.procs").write_text(str(worker.pid))  # before it has imported anything
            worker.wait_ready()
            bench = Bench(pool=pool, worker=worker, producer=producer, endless=endless)
            yield bench, limit, Path(folder)
            if worker.alive:
                worker.stop()
        producer.close()


def run(shape: Shape, *, pool: str, limit_mb: int) -> dict[str, Any]:
    """Run one shape on one pool, after a warm-up, and return what was seen."""
    slots = max(2, shape.tasks)
    # The model server has one size of answers; inputs may have any.
    warm = replace(shape, tasks=4 * slots, size_bytes=WARM_BYTES) if not shape.answers else shape
    with running(shape, pool=pool, slots=slots, limit_mb=limit_mb) as (bench, limit, folder):
        if shape.in_memory:
            return {
                "shape": shape.name,
                "pool": pool,
                **bench.send_to_its_death(shape, limit),
                "kills": kills(limit),
            }
        # One after the other where they share a process: what they take at a time is what is measured.
        for part in [replace(warm, tasks=1)] * warm.tasks if pool == "gevent" else [warm]:
            bench.send(part)
        seen = bench.run(shape)
        left = [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {"shape": shape.name, "pool": pool, **seen, "kills": kills(limit), "files_left": len(left)}


def _status(pid: int, name: str) -> int:
    """Return a line of /proc/PID/status in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _peak_reset(pid: int) -> int:
    """Let the peak begin anew at what is resident now, and return that.

    https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def main() -> int:
    """Print one JSON object a run; return 0 if every byte came and nothing was killed or left."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mb", type=int, default=1024, help="size of the large body")
    options.add_argument("--limit-mb", type=int, default=512)
    options.add_argument("--only", default="", help="part of a shape's name")
    given = options.parse_args()
    shapes = [
        Shape(name="one large input", tasks=1, size_bytes=given.mb * MIB),
        Shape(name="eight inputs at a time", tasks=8, size_bytes=given.mb * MIB // 16),
        Shape(name="one large answer", tasks=1, size_bytes=given.mb * MIB, answers=True),
        Shape(name="one large input in memory", tasks=1, size_bytes=given.mb * MIB, in_memory=True),
    ]
    good = True
    for pool in ("gevent", "prefork"):
        for shape in (shape for shape in shapes if given.only in shape.name):
            seen = run(shape, pool=pool, limit_mb=given.limit_mb)
            whole = shape.in_memory or (seen["whole"] and not seen["files_left"])
            good = good and whole and bool(seen["kills"]) is shape.in_memory
            sys.stdout.write(json.dumps(seen) + "\n")
            sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
