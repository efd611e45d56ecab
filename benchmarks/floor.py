"""The floor: an HTTP client in a loop, with neither queue nor stored result, as cheap as a worker could get.

    python -m benchmarks.floor CLIENT IN_FLIGHT TASKS ROUNDS

``CLIENT`` is ``forwarder``, its inference client, or ``http.client``, the standard library's, which the
rivals have. So many greenlets each encode a body, POST it and decode the answer, first with a server
that takes no time, then with one that takes a second. Prints the figures that a worker has, as JSON.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - first the patch
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent

from benchmarks.rivals import work
from benchmarks.steady import steady_share
from forwarder.inference.client import InferenceClient

#: Of the model server in the second phase.
HELD_S = 1.0
#: Seconds that no call takes.
TIMEOUT_S = 60.0

Call = Callable[[dict[str, Any]], Any]


def forwarders(in_flight: int) -> Call:
    """Return a call by the forwarder's client."""
    client = InferenceClient(
        url=work.PREDICT_URL,
        connect_timeout_s=TIMEOUT_S,
        read_timeout_s=TIMEOUT_S,
        total_timeout_s=TIMEOUT_S,
        response_bytes_max=1024 * 1024,
        idle_max=in_flight,
    )

    def call(body: dict[str, Any]) -> Any:
        answer = client.predict(json.dumps(body).encode(), headers={})
        return json.loads(answer.body)

    return call


def loop(call: Call, *, in_flight: int, tasks: int, sleep_s: float) -> tuple[float, list[float]]:
    """Make the calls; return the CPU seconds, and when it began and each call ended."""
    bodies: Iterator[dict[str, Any]] = (work.payload(number, sleep_s) for number in range(tasks))
    times = [time.time()]

    def slot() -> None:
        for body in bodies:
            call(body)
            times.append(time.time())

    before_s = time.process_time()
    gevent.joinall([gevent.spawn(slot) for _ in range(in_flight)], raise_error=True)
    return time.process_time() - before_s, times


def main() -> None:
    """Measure and print."""
    client, in_flight, tasks, rounds = sys.argv[1], *map(int, sys.argv[2:5])
    call = forwarders(in_flight) if client == "forwarder" else work.Client().predict
    loop(call, in_flight=in_flight, tasks=2 * in_flight, sleep_s=0.0)
    used_s, times = loop(call, in_flight=in_flight, tasks=tasks, sleep_s=0.0)
    figures: dict[str, float | None] = {
        "cpu_ms_0s": 1000 * used_s / tasks,
        "tasks_per_s_0s": tasks / (times[-1] - times[0]),
    }
    if rounds:
        held = rounds * in_flight
        used_s, times = loop(call, in_flight=in_flight, tasks=held, sleep_s=HELD_S)
        figures["cpu_ms_1s"] = 1000 * used_s / held
        figures["ideal_1s"] = steady_share(times[1:], tasks=held, slots=in_flight, held_s=HELD_S)
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
