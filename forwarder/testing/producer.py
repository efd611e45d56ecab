"""A task's sender as users have it: stock Celery, which knows nothing of this worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.result import AsyncResult

TASK = "forwarder.forward"


class Producer:
    """Sends tasks to one queue and reads their results.

    ``conf`` is added to the Celery configuration; ``sqs_conf`` and ``s3_conf``
    make what those two need.
    """

    def __init__(
        self, *, broker_url: str, backend: str, queue: str, conf: Mapping[str, Any] | None = None
    ) -> None:
        self.queue = queue
        self.app = Celery("producer", broker=broker_url, backend=backend, set_as_current=False)
        self.app.conf.update(conf or {})

    def send(self, payload: Any, *args: Any, task: str = TASK, **options: Any) -> AsyncResult[Any]:
        """Send one task (``options`` as of ``Celery.send_task``) and return its stock AsyncResult."""
        return self.app.send_task(task, args=(payload, *args), queue=self.queue, **options)

    def result(self, task_id: str) -> AsyncResult[Any]:
        """Return the stock AsyncResult of a task sent earlier."""
        return self.app.AsyncResult(task_id)

    def close(self) -> None:
        """Close the connections to broker and results."""
        self.app.close()


def sqs_conf(env: Mapping[str, str], *, queue: str, url: str) -> dict[str, Any]:
    """Return the configuration for a queue that exists; the broker URL is ``sqs_broker_url(env)``."""
    predefined = {
        "url": url,
        "access_key_id": env["AWS_ACCESS_KEY_ID"],
        "secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
    }
    return {
        "broker_transport_options": {
            "region": env["AWS_REGION"],
            "predefined_queues": {queue: predefined},
            "is_secure": env["AWS_ENDPOINT_URL"].startswith("https:"),
        }
    }


def sqs_broker_url(env: Mapping[str, str]) -> str:
    """Return the URL that points kombu's SQS transport at the endpoint of ``env``."""
    return f"sqs://{urlsplit(env['AWS_ENDPOINT_URL']).netloc}"


def s3_conf(env: Mapping[str, str], *, bucket: str, prefix: str) -> dict[str, Any]:
    """Return the configuration of the stock S3 result backend; ``backend`` is then ``s3://``."""
    return {
        "s3_bucket": bucket,
        "s3_base_path": prefix,
        "s3_endpoint_url": env["AWS_ENDPOINT_URL"],
        "s3_region": env["AWS_REGION"],
        "s3_access_key_id": env["AWS_ACCESS_KEY_ID"],
        "s3_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
    }
