"""SQS's batch calls on one queue: ten entries for the price of one, each of which may fail by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.sqs.messages import RawMessage

T = TypeVar("T")

#: Entries of one batch call, of whatever kind:
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
BATCH_MAX = 10
#: Bytes of one SendMessageBatch; a larger message goes alone. AWS takes four times as
#: much since 2025, its emulators and older stacks don't.
SEND_BYTES_MAX = 262_144

#: The handle will never be good again: the message is deleted, visible, or past SQS's 12 hours.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
GONE = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"})

#: The numbers of the entries that failed, with AWS's word for why.
Failed = dict[int, str]


class QueueCalls:
    """One queue's calls. Each blocks for one, and raises botocore's errors when all of it failed."""

    def __init__(self, *, client: Callable[[], Any], poller: Callable[[], Any], queue_url: str) -> None:
        self._client = client
        self._poller = poller
        self.queue_url = queue_url

    def receive(self, number: int, *, wait_s: int, visibility_timeout_s: int) -> Sequence[RawMessage]:
        """Take up to ``number`` messages; blocks until there is one, for at most ``wait_s``."""
        answer = self._poller().receive_message(
            QueueUrl=self.queue_url,
            MaxNumberOfMessages=number,
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=visibility_timeout_s,
            MessageSystemAttributeNames=["ApproximateReceiveCount", "MessageGroupId"],
            MessageAttributeNames=["All"],
        )
        messages: Sequence[RawMessage] = answer.get("Messages", [])
        return messages

    def depth(self) -> int:
        """Return about how many messages wait, those that are in flight or delayed not counted."""
        answer = self._client().get_queue_attributes(
            QueueUrl=self.queue_url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])

    def send(self, messages: Sequence[Mapping[str, Any]]) -> Failed:
        """Put messages (as of ``copy_of``) into the queue."""
        return self._call("send_message_batch", messages)

    def delete(self, deliveries: Sequence[Delivery]) -> Failed:
        """Remove messages for good."""
        return self._call("delete_message_batch", [{"ReceiptHandle": each.tag} for each in deliveries])

    def set_visibility(self, deliveries: Sequence[Delivery], timeout_s: int) -> Failed:
        """Hide messages for so long from now; 0 makes them visible."""
        entries = [{"ReceiptHandle": each.tag, "VisibilityTimeout": timeout_s} for each in deliveries]
        return self._call("change_message_visibility_batch", entries)

    def _call(self, operation: str, entries: Sequence[Mapping[str, Any]]) -> Failed:
        if not entries:
            return {}
        numbered = [{"Id": str(number), **entry} for number, entry in enumerate(entries)]
        answer = getattr(self._client(), operation)(QueueUrl=self.queue_url, Entries=numbered)
        # Some come as "AWS.SimpleQueueService.MessageNotInflight".
        return {int(each["Id"]): each["Code"].rpartition(".")[2] for each in answer.get("Failed", [])}


def tens(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in batches."""
    for start in range(0, len(items), BATCH_MAX):
        yield items[start : start + BATCH_MAX]


def sendable(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Yield deliveries in batches that one SendMessageBatch takes copies of."""
    batch: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        grown = size + len(delivery.receipt["Body"])
        if batch and (len(batch) == BATCH_MAX or grown > SEND_BYTES_MAX):
            yield batch
            batch, grown = [], len(delivery.receipt["Body"])
        batch.append(delivery)
        size = grown
    if batch:
        yield batch
