"""arq: ``arq benchmarks.rivals.arq_rival.WorkerSettings``; its results are in its queue's database."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import aiohttp
from arq import create_pool, func
from arq.connections import RedisSettings
from arq.constants import result_key_prefix

from benchmarks.rivals import work


async def startup(context: dict[str, Any]) -> None:
    """Open the one session of the worker."""
    context["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def forward(context: dict[str, Any], body: dict[str, Any]) -> Any:
    """Do the work of the comparison."""
    async with context["session"].post(work.PREDICT_URL, json=body) as response:
        response.raise_for_status()
        return await response.json()


class WorkerSettings:
    """What arq reads."""

    functions: ClassVar[list[Any]] = [func(forward, name="forward", keep_result=work.RESULT_TTL_S)]
    on_startup = startup
    redis_settings = RedisSettings.from_dsn(work.RESULTS_URL)
    max_jobs = work.IN_FLIGHT


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        pool = runner.run(create_pool(WorkerSettings.redis_settings))
        work.send(lambda body: f"{result_key_prefix}{runner.run(pool.enqueue_job('forward', body)).job_id}")
