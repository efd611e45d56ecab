"""What the chart's ScaledObject counts on Redis is every task that waits or runs, each of them once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from forwarder.testing.services import ModelServer
from tests.deploy.charts import ALONE, NO_HELM, Helm, find_helm, of_kind
from tests.integration.scenes import HELD, PATIENCE_S, RedisScene, wait_until

#: KEDA's own way to count: https://github.com/kedacore/keda/blob/main/pkg/scalers/redis_scaler.go
COUNTS = {"zset": "ZCARD", "set": "SCARD", "list": "LLEN", "hash": "HLEN", "none": "LLEN"}


def test_keda_counts_what_waits_and_what_runs(
    redis_scene: RedisScene,
    model_server: ModelServer,
    tmp_path: Path,
    missing: Callable[[str], NoReturn],
) -> None:
    binary = find_helm() or missing(NO_HELM)
    queue = redis_scene.sender.queue
    scaling = {"kind": "keda", "redis": {"priorities": True}}
    objects = Helm(binary=binary, folder=tmp_path).render({**ALONE, "queues": [queue], "scaling": scaling})
    (scaled,) = of_kind(objects, "ScaledObject")
    lists = [trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]]

    def counted() -> list[int]:
        broker: Any = redis_scene.broker
        kinds = [broker.type(name).decode() for name in lists]
        return [
            int(broker.execute_command(COUNTS[kind], name)) for kind, name in zip(kinds, lists, strict=True)
        ]

    sent = [
        redis_scene.sender.send({"args": {"id": f"{step}-{number}", "behaviour": HELD}}, priority=step)
        for step in (0, 3, 6, 9)
        for number in range(2)
    ]
    assert counted() == [2, 2, 2, 2, 0]

    redis_scene.ready("gevent", CONCURRENCY="3")
    model_server.wait_in_flight(3)
    wait_until(lambda: counted()[-1] == 3, "the leases of what runs are counted")
    assert sum(counted()) == len(sent)

    model_server.control(release=True, behaviour={})
    for result in sent:
        result.get(timeout=PATIENCE_S)
    wait_until(lambda: sum(counted()) == 0, "nothing is counted when all is done")
