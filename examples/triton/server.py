"""A Triton server with one model in Python: ``python server.py [PORT]``; metrics are at PORT + 2."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.model_config.common import QueuePolicy
from pytriton.triton import Triton, TritonConfig

BATCH_MAX = 4
#: Requests that may wait beside the batch that runs; one more is answered with 503, which the forwarder
#: takes as "busy" and tries again.
QUEUE_MAX = 4


@batch
def add_up(values: Any, sleep_s: Any) -> dict[str, Any]:
    """Return the sum of each row; ``sleep_s`` stands for a model that takes its time."""
    time.sleep(float(sleep_s.max()))
    return {"sum": values.sum(axis=1, keepdims=True)}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port,
        grpc_address="127.0.0.1", grpc_port=port + 1,
        metrics_address="127.0.0.1", metrics_port=port + 2,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="sums",
            infer_func=add_up,
            inputs=[
                Tensor(name="values", dtype=numpy.float32, shape=(-1,)),
                Tensor(name="sleep_s", dtype=numpy.float32, shape=(1,)),
            ],
            outputs=[Tensor(name="sum", dtype=numpy.float32, shape=(1,))],
            config=ModelConfig(
                max_batch_size=BATCH_MAX,
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=10_000,
                    default_queue_policy=QueuePolicy(max_queue_size=QUEUE_MAX),
                ),
            ),
            strict=True,
        )
        triton.serve()
