"""A LitServe server that adds numbers up, several requests at a time: ``python server.py [PORT]``."""

from __future__ import annotations

import sys
import time
from typing import Any

import litserve

BATCH_MAX = 4


class Sums(litserve.LitAPI):
    """The model; ``sleep_s`` in a request stands for one that takes its time."""

    def setup(self, device: str) -> None:
        """Load the model. Until this is over ``/health`` answers 503."""

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would look for it in the URL
        """Check a request: what is raised here or in ``predict`` fails its whole batch."""
        return {**request, "numbers": [float(number) for number in request["numbers"]]}

    def predict(self, batch: list[dict[str, Any]]) -> list[float]:
        """Return the sum for each request of the batch."""
        time.sleep(max(request.get("sleep_s", 0.0) for request in batch))
        return [sum(request["numbers"]) for request in batch]

    def encode_response(self, output: float) -> dict[str, float]:
        """Return the JSON of one answer."""
        return {"sum": output}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    model = Sums(max_batch_size=BATCH_MAX, batch_timeout=0.01)
    # timeout: how long a request may wait for its batch. Its 504 would be the task's result, so there is
    # none: what waits here is bounded by the forwarder's concurrency and by its --task-timeout.
    server = litserve.LitServer(model, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)
