"""A cloud for soaks: moto, with all that a task asks for answered in front of it.

    python -m benchmarks.soak.light_cloud --port N --life 40

moto takes 20 ms of CPU for a task and keeps each result and record, for hours. Here messages,
results and records are taken, counted and forgotten. A role's token lives for ``--life``
seconds: the worker asks for an hour, AWS gives no less than a quarter of one, and a soak of
minutes would see a client built once. The rest is moto's.
"""

from __future__ import annotations

from benchmarks import counted_moto  # isort: skip - first: it patches for gevent

import argparse
import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer
from gevent.queue import Empty, Queue
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sts.models import STSBackend

RESULTS = "/results/"
Json = dict[str, Any]
App = Callable[[Json, Callable[..., Any]], Iterable[bytes]]

granted = STSBackend.assume_role


def shorten(life_s: int) -> None:
    """Let every assumed role's token expire after so many seconds, whatever was asked for."""

    def assume_role(self: STSBackend, *args: Any, **options: Any) -> Any:
        return granted(self, *args, **options | {"duration": life_s})

    STSBackend.assume_role = assume_role  # type: ignore[method-assign]


class Queues:
    """SQS, as far as a worker that never loses a lease can tell: what was received does not come again."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, Queue[Json]] = defaultdict(Queue)
        self._held: dict[str, Json] = {}

    def send(self, body: Json) -> Json:
        """Take a batch of messages."""
        for entry in body["Entries"]:
            text = entry["MessageBody"]
            md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": "0"}
            message = {"MessageId": str(uuid.uuid4()), "Body": text, "MD5OfBody": md5}
            self._waiting[body["QueueUrl"]].put(message | {"Attributes": attributes})
        return self._all(body)

    def receive(self, body: Json) -> Json:
        """Give up to ten messages; wait for the first as long as was asked."""
        queue = self._waiting[body["QueueUrl"]]
        found: list[Json] = []
        wait_s = body.get("WaitTimeSeconds", 0)
        while len(found) < body.get("MaxNumberOfMessages", 1):
            try:
                message = queue.get(block=not found and wait_s > 0, timeout=wait_s or None)
            except Empty:
                break
            handle = str(uuid.uuid4())
            self._held[handle] = message
            found.append(message | {"ReceiptHandle": handle})
        return {"Messages": found}

    def delete(self, body: Json) -> Json:
        """Forget one message, or a batch."""
        for entry in body.get("Entries", [body]):
            self._held.pop(entry["ReceiptHandle"], None)
        return self._all(body)

    def change(self, body: Json) -> Json:
        """Put back what is handed back; a lease that is renewed is as long as it was."""
        for entry in body.get("Entries", [body]):
            if entry["VisibilityTimeout"] == 0 and entry["ReceiptHandle"] in self._held:
                self._waiting[body["QueueUrl"]].put(self._held.pop(entry["ReceiptHandle"]))
        return self._all(body)

    @staticmethod
    def _all(body: Json) -> Json:
        """Return that all of a batch went well."""
        return {"Successful": [{"Id": entry["Id"]} for entry in body.get("Entries", [])], "Failed": []}


def take_records(body: Json) -> Json:
    """Return Firehose's answer to one record or a batch."""
    taken = [{"RecordId": str(number)} for number in range(len(body.get("Records", [])))]
    return {"RecordId": "0", "FailedPutCount": 0, "RequestResponses": taken}


def light(app: App) -> App:
    """Return the application with what a task asks for answered in front of it."""
    queues = Queues()
    answers: dict[str, Callable[[Json], Json]] = {
        "SendMessageBatch": queues.send,
        "ReceiveMessage": queues.receive,
        "DeleteMessage": queues.delete,
        "DeleteMessageBatch": queues.delete,
        "ChangeMessageVisibility": queues.change,
        "ChangeMessageVisibilityBatch": queues.change,
        "PutRecord": take_records,
        "PutRecordBatch": take_records,
    }

    def answer(environ: Json, start_response: Callable[..., Any]) -> Iterable[bytes]:
        known = answers.get(environ.get(counted_moto.TARGET, "").rpartition(".")[2])
        if known is not None:
            content = json.dumps(known(json.loads(environ["wsgi.input"].read()))).encode()
        elif environ["REQUEST_METHOD"] == "PUT" and RESULTS in environ["PATH_INFO"]:
            environ["wsgi.input"].read()
            content = b""
        else:
            return app(environ, start_response)
        headers = [("Content-Type", "application/x-amz-json-1.0"), ("Content-Length", str(len(content)))]
        start_response("200 OK", headers)
        return [content]

    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve AWS's protocols, with tokens that live for seconds.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--life", type=int, required=True, metavar="SECONDS")
    options = parser.parse_args()
    shorten(options.life)
    moto = DomainDispatcherApplication(create_backend_app)
    # moto's own server closes every connection.
    WSGIServer(("127.0.0.1", options.port), counted_moto.Counting(light(moto)), log=None).serve_forever()
