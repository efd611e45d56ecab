"""A stock Celery worker with a plain task, configured as its documentation recommends against loss.

It takes the environment of our worker, so that every scenario can be run
against both. Run it as ``python -m tests.faults.stock``.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

TASK = "forwarder.forward"
ANSWER_TIMEOUT_S = 60.0


def configuration(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return Celery's configuration: ack late, give back what a lost process held, one message a slot."""
    visibility_s = int(environ["FORWARDER_VISIBILITY_TIMEOUT_S"])
    # By default it sweeps every 100 s, whatever the timeout; at its best it does so every second.
    sweep = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    options: dict[str, Any] = {"visibility_timeout": visibility_s, **sweep}
    queue = environ["FORWARDER_QUEUES"]
    if url := environ.get("FORWARDER_SQS_QUEUE_URL"):
        options = {"predefined_queues": {queue: {"url": url}}, "visibility_timeout": visibility_s}
    elif environ["FORWARDER_BROKER_URL"].startswith("amqp"):
        options = {"confirm_publish": True}
    return {
        "broker_url": environ["FORWARDER_BROKER_URL"],
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        **_results(environ),
        # By default it tries for about 20 s; the harness' bound, so that outages can be short.
        "result_backend_transport_options": {
            "retry_policy": {"timeout": float(environ["FORWARDER_STORE_RETRY_S"])}
        },
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_default_queue": queue,
        "worker_prefetch_multiplier": 1,
        "worker_soft_shutdown_timeout": float(environ["FORWARDER_DRAIN_TIMEOUT_S"]),
        "worker_enable_remote_control": "FORWARDER_SQS_QUEUE_URL" not in environ,
    }


def lacks(broker: str, pool: str) -> str | None:
    """Return why this machine can't run a stock worker there, None where it can."""
    if (broker, pool) == ("sqs", "prefork") and find_spec("pycurl") is None:
        return "no pycurl, without which stock Celery's prefork takes nothing from SQS: pip install pycurl"
    return None


def _results(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return where results go. Keys and endpoint of S3 are boto3's own settings."""
    url = environ["FORWARDER_RESULT_BACKEND"]
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return {"result_backend": url}
    return {
        "result_backend": "s3",
        "s3_bucket": parts.netloc,
        "s3_base_path": parts.path.lstrip("/"),
        "s3_region": environ["AWS_REGION"],
    }


def ask(url: str, payload: Mapping[str, Any]) -> Any:
    """POST to the model server and return the answer. Raises OSError or ValueError."""
    body = json.dumps(payload["args"]).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
        return json.loads(response.read())


def main() -> None:
    """Run the worker until it is told to stop."""
    pool = os.environ["CELERY_WORKER_POOL"]
    if pool == "gevent":
        from gevent import monkey

        monkey.patch_all()
    from celery import Celery

    app = Celery("stock", set_as_current=True)
    app.conf.update(configuration(os.environ))
    predict_url = os.environ["FORWARDER_PREDICT_URL"]

    @app.task(name=TASK, autoretry_for=(OSError, ValueError), max_retries=30, retry_backoff=1)
    def forward(payload: Mapping[str, Any]) -> Any:
        return ask(predict_url, payload)

    concurrency = os.environ["FORWARDER_CONCURRENCY"]
    queue = os.environ["FORWARDER_QUEUES"]
    app.worker_main(["worker", "-P", pool, "-c", concurrency, "-Q", queue, "--without-gossip", "-l", "INFO"])


if __name__ == "__main__":
    main()
