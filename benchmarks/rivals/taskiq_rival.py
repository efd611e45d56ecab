"""taskiq over a Redis list: ``taskiq worker benchmarks.rivals.taskiq_rival:broker``."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks.rivals import work

broker = ListQueueBroker(work.BROKER_URL, queue_name="bench").with_result_backend(
    RedisAsyncResultBackend(work.RESULTS_URL, result_ex_time=work.RESULT_TTL_S)
)
sessions: list[aiohttp.ClientSession] = []


@broker.task(task_name="bench.forward")
async def forward(body: dict[str, Any]) -> Any:
    """Do the work of the comparison."""
    if not sessions:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    async with sessions[0].post(work.PREDICT_URL, json=body) as response:
        response.raise_for_status()
        return await response.json()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        runner.run(broker.startup())
        work.send(lambda body: str(runner.run(forward.kiq(body)).task_id))
        runner.run(broker.shutdown())
