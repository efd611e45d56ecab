"""Answers that together are larger than the memory, one in each prefork child: they wait, and nothing dies.

In a real memory cgroup, in which the kernel kills whoever passes the limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest
import redis

from benchmarks.memory_burst import LOOK_S, NoCgroup, kills, memory_cgroup
from forwarder.scaling.container import Limit
from forwarder.testing.producer import Producer
from forwarder.testing.services import ModelServer, Valkey
from forwarder.testing.worker import Worker

#: Twelve children have some 200 MB; twelve answers, five copies of each, would be 600 MB more.
LIMIT_MB, CHILDREN, ANSWER_BYTES = 400, 12, 10_000_000
SMALL, LARGE, SLEEP_S = CHILDREN, CHILDREN, 0.5
#: Every machine is faster.
TIMEOUT_S = 150.0
#: The soft limit, and what the one task that passes it takes: 70 % and 50 MB.
SAFE = 0.92

RunWorker = Callable[[Mapping[str, str]], tuple[int, int, float, str]]


@pytest.fixture
def limit(missing: Callable[[str], NoReturn]) -> Iterator[Limit]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(memory_cgroup(LIMIT_MB))
        except NoCgroup as error:
            missing(str(error))
        yield made


@pytest.fixture
def run(limit: Limit, valkey: Valkey, model_server: ModelServer, queue_name: str) -> Iterator[RunWorker]:
    results = valkey.url.removesuffix("/0") + "/1"

    def send() -> None:
        """Small tasks, so that all children are there, then large ones."""
        sender = Producer(broker_url=valkey.url, backend=results, queue=queue_name)
        for number in range(SMALL + LARGE):
            behaviour: dict[str, Any] = {"sleep_s": SLEEP_S}
            if number >= SMALL:
                behaviour["huge_bytes"] = ANSWER_BYTES
            sender.send({"args": {"id": str(number), "behaviour": behaviour}})
        sender.close()

    def run_worker(env: Mapping[str, str]) -> tuple[int, int, float, str]:
        """Return how many were done and killed, the largest part of the limit, and the log."""
        send()
        own = {
            **model_server.env,
            "FORWARDER_BROKER_URL": valkey.url,
            "FORWARDER_RESULT_BACKEND": results,
            "FORWARDER_QUEUES": queue_name,
            "FORWARDER_CONCURRENCY": str(CHILDREN),
            "FORWARDER_RESPONSE_BYTES_MAX": str(2 * ANSWER_BYTES),
            "GROWING_MB": "0",
            "GROWING_CGROUP": os.fspath(limit.group or ""),
        }
        done, peak, killed, until = 0, 0.0, 0, time.monotonic() + TIMEOUT_S
        with (
            redis.Redis.from_url(results) as store,
            Worker(pool="prefork", env=own | dict(env), module="benchmarks.growing_worker") as worker,
        ):
            while done < SMALL + LARGE and not killed and worker.alive and time.monotonic() < until:
                time.sleep(LOOK_S)
                peak = max(peak, (limit.used_bytes() or 0) / limit.bytes)
                done, killed = int(store.dbsize()), kills(limit)
            worker.kill()
            return done, killed, peak, worker.log()

    with redis.Redis.from_url(valkey.url) as store:
        store.flushall()  # what is done is counted by what is there
        yield run_worker
        store.flushall()


def test_large_answers_wait_for_memory_and_no_child_is_killed(run: RunWorker) -> None:
    """As many children as an autoscaler may have let the pool grow to by small tasks."""
    done, killed, peak, log = run({})
    assert (done, killed) == (SMALL + LARGE, 0), log[-3000:]
    assert peak < SAFE
    assert "answer_waited_for_memory" in log


def test_the_same_answers_kill_children_that_do_not_wait(run: RunWorker) -> None:
    """Nothing is known of a container's use where its limit is a setting."""
    done, killed, peak, _ = run({"FORWARDER_MEMORY_LIMIT_MB": str(LIMIT_MB)})
    assert killed > 0, f"{done} done, {peak:.2f} of the limit"
