"""Stock Celery on SQS, with results in S3 and a record for Firehose after each success.

``celery -A benchmarks.rivals.sqs_rival worker -P gevent``; ``BENCH_TUNED=1`` shares the result
backend, which stock Celery makes anew for each greenlet.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from celery import Celery, signals

from benchmarks.rivals import work

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
QUEUE = os.environ["BENCH_QUEUE"]
KEYS = {name: os.environ[f"AWS_{name.upper()}"] for name in ("access_key_id", "secret_access_key")}

app = Celery("bench", broker=f"sqs://{urlsplit(ENDPOINT).netloc}", backend="s3://")
app.conf.update(
    task_default_queue=QUEUE,
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    broker_transport_options={
        "region": os.environ["AWS_REGION"],
        "predefined_queues": {QUEUE: {"url": os.environ["BENCH_QUEUE_URL"], **KEYS}},
        "is_secure": False,
    },
    result_backend_thread_safe="BENCH_TUNED" in os.environ,
    s3_bucket=os.environ["BENCH_BUCKET"],
    s3_base_path="results/",
    s3_endpoint_url=ENDPOINT,
    s3_region=os.environ["AWS_REGION"],
    **{f"s3_{name}": value for name, value in KEYS.items()},
)
client = work.Client()
_making = threading.Lock()
_firehose: list[Any] = []


@app.task(name="forwarder.forward")
def forward(payload: dict[str, Any]) -> Any:
    """Do the work of the comparison."""
    return client.predict(payload["args"])


@signals.task_success.connect
def record(sender: Any, result: Any, **_: Any) -> None:
    """Put a record onto the delivery stream."""
    with _making:
        if not _firehose:
            import boto3

            _firehose.append(boto3.client("firehose", endpoint_url=ENDPOINT))
    data = json.dumps({"TASK_ID": sender.request.id, "EMITTED_AT": time.time(), "RESULT": result})
    _firehose[0].put_record(DeliveryStreamName=os.environ["BENCH_BUCKET"], Record={"Data": data + "\n"})
