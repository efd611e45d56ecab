"""What every worker of the comparison does with a task, and how every sender sends.

One POST of the payload to the model server, over a connection that is kept, and the
answer returned. Nothing here imports the forwarder: rivals have an environment of their own.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

#: Redis databases: queues in the one, results in the other.
BROKER_URL = os.environ.get("BENCH_BROKER_URL", "")
RESULTS_URL = os.environ.get("BENCH_RESULTS_URL", "")
PREDICT_URL = os.environ.get("BENCH_PREDICT_URL", "")
IN_FLIGHT = int(os.environ.get("BENCH_IN_FLIGHT", "1"))
#: Seconds that results are kept: all the same, so that all pay for an expiry.
RESULT_TTL_S = 3600
HEADERS = {"Content-Type": "application/json"}
TEXT = "x" * 200


def payload(number: int, sleep_s: float) -> dict[str, Any]:
    """Return the body that goes to the model server."""
    return {"id": number, "sleep_s": sleep_s, "text": TEXT}


class Client:
    """Keeps the connections that are idle: the cheapest client of the standard library.

    Safe from threads and greenlets; a connection is used by one at a time.
    """

    def __init__(self) -> None:
        self._address = urlsplit(PREDICT_URL)
        self._idle: deque[http.client.HTTPConnection] = deque()

    def predict(self, body: Any) -> Any:
        """POST a body and return the answer. Blocks. Raises what http.client raises, and RuntimeError."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port)
        connection.request("POST", self._address.path, json.dumps(body), HEADERS)
        with connection.getresponse() as response:
            answer = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(response.status)
        self._idle.append(connection)
        return answer


def send(enqueue: Callable[[dict[str, Any]], str]) -> None:
    """Send as the command line says, then print each result's key and when its task was in the queue.

    ``TASKS SLEEP_S RATE``: how many, how long the model server takes for each, and how
    many a second (0: as fast as it goes).
    """
    tasks, sleep_s, rate = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    started = 0.0
    sent = []
    for number in range(tasks):
        if rate and number:
            time.sleep(max(0.0, started + number / rate - time.time()))
        key = enqueue(payload(number, sleep_s))
        sent.append((key, time.time()))
        if not number:  # it has connected: what that took would be made up for by a burst
            started = time.time()
    json.dump(sent, sys.stdout)
