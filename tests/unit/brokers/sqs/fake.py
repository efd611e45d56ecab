"""An SQS queue in memory, with a clock of its own and calls that fail on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

from forwarder.brokers.sqs.leases import SqsLeases

QUEUE_URL = "https://sqs/1/q"
VISIBILITY_S = 30


class FakeSqs:
    """Stands for a boto3 client; ``queues`` maps names to what was sent, ``calls`` tells what was asked."""

    def __init__(self, *queues: str) -> None:
        self.queues: dict[str, list[dict[str, Any]]] = {name: [] for name in queues or ("q",)}
        self.calls: list[tuple[str, Any]] = []
        self.fails: dict[str, Exception | dict[str, str]] = {}
        self.redrive: str | None = None
        self.inbox: list[dict[str, Any]] = []

    def named(self, operation: str) -> list[Any]:
        """Return the arguments of each call of one operation."""
        return [arguments for name, arguments in self.calls if name == operation]

    def _note(self, operation: str, arguments: dict[str, Any]) -> None:
        self.calls.append((operation, arguments))
        failure = self.fails.get(operation)
        if isinstance(failure, Exception):
            raise failure

    def _batch(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._note(operation, arguments)
        codes: Any = self.fails.get(operation, {})
        failed: list[dict[str, Any]] = []
        done: list[dict[str, Any]] = []
        for entry in arguments["Entries"]:
            code = codes.get(entry.get("ReceiptHandle") or entry.get("MessageBody"))
            (failed if code else done).append(entry | {"Code": code})
        if operation == "send_message_batch":
            self.queues[name_of(arguments)] += done
        return {"Failed": failed} if failed else {}

    def receive_message(self, **arguments: Any) -> dict[str, Any]:
        self._note("receive_message", arguments)
        taken, self.inbox = self.inbox[: arguments["MaxNumberOfMessages"]], []
        if not taken:
            time.sleep(0.001)  # a receiver that polls an empty queue must not spin
        return {"Messages": taken} if taken else {}

    def send_message_batch(self, **arguments: Any) -> dict[str, Any]:
        return self._batch("send_message_batch", arguments)

    def delete_message_batch(self, **arguments: Any) -> dict[str, Any]:
        return self._batch("delete_message_batch", arguments)

    def change_message_visibility_batch(self, **arguments: Any) -> dict[str, Any]:
        return self._batch("change_message_visibility_batch", arguments)

    def send_message(self, **arguments: Any) -> None:
        self._note("send_message", arguments)
        self.queues[name_of(arguments)].append(arguments)

    def get_queue_attributes(self, **arguments: Any) -> dict[str, Any]:
        self._note("get_queue_attributes", arguments)
        return {"Attributes": {"RedrivePolicy": self.redrive}} if self.redrive else {}

    def get_queue_url(self, **arguments: Any) -> dict[str, str]:
        self._note("get_queue_url", arguments)
        if arguments["QueueName"] not in self.queues:
            raise refusal("AWS.SimpleQueueService.NonExistentQueue")
        return {"QueueUrl": f"https://sqs/1/{arguments['QueueName']}"}

    def create_queue(self, **arguments: Any) -> dict[str, str]:
        self._note("create_queue", arguments)
        self.queues[arguments["QueueName"]] = []
        return {"QueueUrl": f"https://sqs/1/{arguments['QueueName']}"}


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def name_of(arguments: dict[str, Any]) -> str:
    return str(arguments["QueueUrl"]).rpartition("/")[2]


def refusal(code: str) -> ClientError:
    """Return what botocore raises when AWS answers with an error."""
    return ClientError({"Error": {"Code": code, "Message": "of account 1"}}, "Operation")


def raw_message(
    handle: str = "h", *, count: int = 1, body: str = "body", group: str | None = None, **attributes: Any
) -> dict[str, Any]:
    """Return a message as SQS answers with it."""
    system = {"ApproximateReceiveCount": str(count)} | ({"MessageGroupId": group} if group else {})
    return {
        "MessageId": f"id-{handle}",
        "ReceiptHandle": handle,
        "Body": body,
        "Attributes": system,
        "MessageAttributes": attributes,
    }


def message(raw: dict[str, Any]) -> Any:
    """Return what the consumer gets of it."""
    return SimpleNamespace(headers={"id": "task"}, delivery_info={"sqs_message": raw})


def make_leases(
    sqs: FakeSqs, clock: Callable[[], float], *, queue_url: str = QUEUE_URL, wait_s: int = 10
) -> SqsLeases:
    return SqsLeases(
        client=lambda: sqs,
        poller=lambda: sqs,
        queue="q",
        queue_url=queue_url,
        visibility_timeout_s=VISIBILITY_S,
        wait_s=wait_s,
        clock=clock,
        uniform=lambda low, high: 0.0,
    )
