"""How long a message waits for a worker on SQS that has nothing to do, and what such a worker asks of AWS."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sqs_scene import Scene
from benchmarks.systems import System
from forwarder.testing.processes import Process, clean_env

#: Messages to an idle worker, the pause before each, and the longest that one may wait.
PICK_UPS, BETWEEN_S, PICK_UP_MAX_S = 10, 1.0, 30.0
#: A long poll is 20 s: this has three of them.
IDLE_S = 60.0

Row = dict[str, Any]


def pick_up(scene: Scene, system: System, *, in_flight: int) -> Row:
    """Send single messages to an idle worker; return after what time each was at the model server."""
    where = dict(scene.where) | clean_env(Path("/nonexistent"))
    worker: Process = system.start(where, in_flight=in_flight, cpu=None)
    try:
        scene.send(2)
        scene.wait_done(2)
        scene.moto.counts()
        time.sleep(IDLE_S)
        asked = sum(scene.moto.counts().values())
        waits_ms = [_wait_ms(scene) for _ in range(PICK_UPS)]
    finally:
        worker.stop()
    return {"system": system.name, "waits_ms": waits_ms, "idle_calls_per_minute": asked * 60 / IDLE_S}


def _wait_ms(scene: Scene) -> float:
    time.sleep(BETWEEN_S)
    before = scene.echo.stats()["requests"]
    sent = scene.send(1)
    deadline = time.monotonic() + PICK_UP_MAX_S
    while (stats := scene.echo.stats())["requests"] == before:
        if time.monotonic() > deadline:
            raise TimeoutError("an idle worker did not take a message")
        time.sleep(0.02)
    return max(0.0, 1000 * (stats["last_at"] - sent))


def show_pick_ups(rows: Sequence[Row]) -> None:
    """Print a line for each worker."""
    for row in rows:
        waits = row["waits_ms"]
        print(
            f"idle {row['system']}: a message is at the model server after {statistics.median(waits):.0f} ms "
            f"({min(waits):.0f} to {max(waits):.0f}, of {len(waits)}); "
            f"{row['idle_calls_per_minute']:.0f} AWS calls a minute"
        )
