"""dramatiq over Redis: ``dramatiq-gevent benchmarks.rivals.dramatiq_rival``."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.rivals import work

results = RedisBackend(url=work.RESULTS_URL)
broker = RedisBroker(url=work.BROKER_URL)
broker.add_middleware(Results(backend=results, result_ttl=1000 * work.RESULT_TTL_S))
dramatiq.set_broker(broker)
client = work.Client()


@dramatiq.actor(store_results=True, queue_name="bench")
def forward(body: dict[str, Any]) -> Any:
    """Do the work of the comparison."""
    return client.predict(body)


def enqueue(body: dict[str, Any]) -> str:
    """Send one task; return the key of its result."""
    return str(results.build_message_key(forward.send(body)))


if __name__ == "__main__":
    work.send(enqueue)
