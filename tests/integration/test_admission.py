"""Payloads or answers that together are far larger than the memory: the worker slows down, and nothing dies.

In a real memory cgroup, in which the kernel kills whoever passes the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

import pytest

from benchmarks.memory_burst import NoCgroup
from benchmarks.payload_flood import SABOTAGE, Flood, Flooded, run
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import ModelServer, Valkey
from tests.integration.scenes import POOLS, queue_on, total

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker

#: In proportion to 200 x 5 MB in 512 MiB: nearly twice the limit in payloads alone.
FLOOD = Flood(tasks=80, payload_bytes=2_500_000, limit_mb=256, slots=50, sleep_s=0.3)
#: The same of answers, to payloads that are no reason to hold a message back.
ANSWERS = Flood(tasks=80, payload_bytes=100, answer_bytes=2_500_000, limit_mb=256, slots=50, sleep_s=0.3)
#: Every machine is faster.
TIMEOUT_S = 240.0
#: A budget that is smaller than any message.
TINY = {"FORWARDER_INFLIGHT_BYTES_MAX": "100", "FORWARDER_CONCURRENCY": "4"}
TASKS = 4

RunFlood = Callable[..., Flooded]


@pytest.fixture
def flood(valkey: Valkey, model_server: ModelServer, missing: Callable[[str], NoReturn]) -> RunFlood:
    def run_flood(
        env: Mapping[str, str] | None = None, broker_url: str | None = None, of: Flood = FLOOD
    ) -> Flooded:
        try:
            return run(
                of, valkey=valkey, model_server=model_server, env=env, broker_url=broker_url,
                timeout_s=TIMEOUT_S,
            )  # fmt: skip
        except NoCgroup as error:
            missing(str(error))

    return run_flood


def check(flooded: Flooded) -> None:
    assert (flooded.done, flooded.asked, flooded.kills) == (FLOOD.tasks, FLOOD.tasks, 0), flooded.log[-3000:]
    assert flooded.peak_share < 0.95
    assert flooded.log.count("inflight_bytes_reached") < 3


def test_a_flood_of_payloads_is_worked_off_within_the_memory(flood: RunFlood) -> None:
    flooded = flood()
    check(flooded)
    assert 3 <= flooded.in_flight_peak <= 12
    assert "inflight_bytes_reached" in flooded.log


def test_a_flood_of_answers_is_worked_off_within_the_memory(flood: RunFlood) -> None:
    flooded = flood(of=ANSWERS)
    check(flooded)
    assert flooded.in_flight_peak == ANSWERS.slots, "all are asked for before the first comes"


@pytest.mark.parametrize("of", [FLOOD, ANSWERS], ids=["payloads", "answers"])
def test_the_same_flood_kills_a_worker_without_budget_and_soft_limit(flood: RunFlood, of: Flood) -> None:
    flooded = flood(SABOTAGE, of=of)
    assert flooded.kills > 0, f"{flooded.done} done, {flooded.peak_share:.2f} of the limit"


def test_what_rabbitmq_pushes_stays_within_the_memory_too(flood: RunFlood, rabbitmq: RabbitMQ) -> None:
    check(flood(broker_url=rabbitmq.url))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "sqs"])
def test_messages_larger_than_the_whole_budget_run_one_by_one(
    broker: str,
    pool: str,
    request: pytest.FixtureRequest,
    valkey: Valkey,
    model_server: ModelServer,
    worker: StartWorker,
    producer: MakeProducer,
    queue_name: str,
) -> None:
    env = {"FORWARDER_RESULT_BACKEND": valkey.url, **model_server.env, **TINY}
    place = queue_on(broker, request, queue_name)
    env |= place.env
    sender = producer(broker_url=place.url, backend=valkey.url, conf=place.conf)
    args = {"numbers": [3], "behaviour": {"sleep_s": 0.2}}
    results = [sender.send({"args": {"id": f"t{number}", **args}}) for number in range(TASKS)]
    worker(pool=pool, env=env).wait_ready()
    assert [total(result) for result in results] == [3] * TASKS
    # A batch is on its way from SQS before its size is known.
    assert model_server.stats()["peak"] == 1 or broker == "sqs"
    assert model_server.stats()["requests"] == TASKS
