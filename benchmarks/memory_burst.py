"""A burst of tasks on a prefork worker in a real memory cgroup, and what was seen of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from forwarder.scaling.container import MIB, Limit, Source
from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

ROOTS: dict[Source, Path] = {"cgroup1": Path("/sys/fs/cgroup/memory"), "cgroup2": Path("/sys/fs/cgroup")}
LOOK_S = 0.2


class NoCgroup(Exception):
    """This machine lets us make no memory cgroup; the message says why."""


@contextlib.contextmanager
def memory_cgroup(limit_mb: int) -> Iterator[Limit]:
    """Make a memory cgroup with a limit (MiB); removed at the end. Raises NoCgroup."""
    source: Source = "cgroup1" if (ROOTS["cgroup1"] / "cgroup.procs").exists() else "cgroup2"
    group = ROOTS[source] / f"forwarder-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        raise NoCgroup(f"no memory cgroup can be made: {error}") from error
    try:
        limits = ["memory.limit_in_bytes"] if source == "cgroup1" else ["memory.max", "memory.swap.max"]
        for name, bytes_max in zip(limits, (limit_mb * MIB, 0), strict=False):
            try:
                (group / name).write_text(str(bytes_max))
            except OSError as error:
                raise NoCgroup(f"{name} can't be set: {error}") from error
        yield Limit(limit_mb * MIB, source, group)
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    for _ in range(50):  # a killed process leaves its cgroup a moment later
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(LOOK_S)
        else:
            return


def kills(limit: Limit) -> int:
    """Return how many processes of the cgroup the kernel has killed for memory."""
    assert limit.group is not None
    name = "memory.oom_control" if limit.source == "cgroup1" else "memory.events"
    found = re.search(r"^oom_kill (\d+)$", (limit.group / name).read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw: seconds since the start, part of the limit used, children, tasks done."""

    at_s: float
    share: float
    children: int
    done: int


@dataclass(slots=True)
class Burst:
    """What came of a burst."""

    name: str
    tasks: int
    limit_bytes: int
    looks: list[Look] = field(default_factory=list)
    began_at: float = 0.0  # seconds since the epoch
    kills: int = 0
    log: str = ""

    @property
    def done(self) -> int:
        """Return how many tasks had a result at the end."""
        return self.looks[-1].done if self.looks else 0

    @property
    def peak(self) -> float:
        """Return the largest part of the limit that was used."""
        return max((look.share for look in self.looks), default=0.0)

    @property
    def children(self) -> int:
        """Return the largest number of children."""
        return max((look.children for look in self.looks), default=0)

    @property
    def tasks_per_s(self) -> float:
        """Return the throughput from the worker's start of consuming to the last look."""
        return self.done / self.looks[-1].at_s if self.looks else 0.0

    def decisions(self) -> list[tuple[str, str]]:
        """Return action and reason of each decision that was logged."""
        return re.findall(r"autoscale action=(\w+) reason=(\w+)", self.log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Services and shape of a burst; ``grow_mb`` is what a child takes with its first task."""

    valkey: Valkey
    model_server: ModelServer
    tasks: int
    sleep_s: float
    grow_mb: int
    limit_mb: int

    def run(self, name: str, args: Sequence[str], *, stop_at_kill: bool = False, timeout_s: float) -> Burst:
        """Run one worker against the burst until all is done, or it ends, or the time is over. Blocks."""
        burst = Burst(name, self.tasks, self.limit_mb * MIB)
        queue = f"burst-{uuid.uuid4().hex[:8]}"
        with memory_cgroup(self.limit_mb) as limit, redis.Redis.from_url(self.valkey.url) as store:
            store.flushall()  # what is done is counted by what is there
            self._send(queue)
            worker = Worker(
                pool="prefork", env=self._env(queue, limit), args=args, module="benchmarks.growing_worker"
            )
            with worker:
                worker.wait_ready()
                began_s, burst.began_at = time.monotonic(), time.time()
                while worker.alive and burst.done < self.tasks and time.monotonic() - began_s < timeout_s:
                    time.sleep(LOOK_S)
                    burst.looks.append(self._look(began_s, worker, limit, store))
                    burst.kills = kills(limit)
                    if burst.kills and stop_at_kill:
                        worker.kill()
                burst.log = worker.log()
            store.flushall()
        return burst

    def _look(self, began_s: float, worker: Worker, limit: Limit, store: redis.Redis) -> Look:
        used = limit.used_bytes() or 0
        done = int(store.info("keyspace").get("db1", {}).get("keys", 0))
        return Look(time.monotonic() - began_s, used / limit.bytes, len(worker.children()), done)

    def _send(self, queue: str) -> None:
        """Send all tasks: the burst waits for the worker, so that nothing grows before the clock runs."""
        sender = Producer(broker_url=self.valkey.url, backend=self._results, queue=queue)
        for number in range(self.tasks):
            sender.send({"args": {"id": str(number), "behaviour": {"sleep_s": self.sleep_s}}})
        sender.close()

    @property
    def _results(self) -> str:
        return self.valkey.url.removesuffix("/0") + "/1"

    def _env(self, queue: str, limit: Limit) -> dict[str, str]:
        return {
            **self.model_server.env,
            "FORWARDER_BROKER_URL": self.valkey.url,
            "FORWARDER_RESULT_BACKEND": self._results,
            "FORWARDER_QUEUES": queue,
            "GROWING_MB": str(self.grow_mb),
            "GROWING_CGROUP": os.fspath(limit.group or ""),
        }
