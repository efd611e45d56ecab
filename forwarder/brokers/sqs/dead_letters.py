"""Where a queue's dead letters are on SQS, and what an operator can do with them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from forwarder.aws_errors import no_such_queue
from forwarder.brokers.dead_letters import (
    DEATH_HEADER,
    DELIVERIES_HEADER,
    DeadLetter,
    NoSuchLetter,
    OpenedLetter,
    read_letter,
)
from forwarder.brokers.sqs.messages import RawMessage, copy_of, dead_name, open_message, queue_name

Client = Any

#: The longest that SQS keeps a message (14 days), in seconds.
RETENTION_S_MAX = 1_209_600
#: How long letters are hidden from others while they are looked through.
HOLD_S = 120
WAIT_S = 1
PAGE = 10


class DeadQueues:
    """Finds the queues that hold the dead letters of one queue.

    That is the target of its redrive policy, where SQS itself moves what was
    received too often, and otherwise a queue of its own, ``<name>-dead``.
    """

    def __init__(self, *, client: Callable[[], Client], queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url
        self._target: str | None = None

    def target(self) -> str:
        """Return the URL of the queue to put letters into, which is made where there is none.

        Blocks for up to three calls, once. Raises botocore's errors.
        """
        if self._target is None:
            name = dead_name(queue_name(self._queue_url))
            self._target = self._redrive_target() or self._url(name) or self._create(name)
        return self._target

    def found(self) -> list[str]:
        """Return the URLs of all that exist. Blocks for up to three calls; raises botocore's errors."""
        urls = (self._redrive_target(), self._url(dead_name(queue_name(self._queue_url))))
        return list(dict.fromkeys(url for url in urls if url))

    def _redrive_target(self) -> str | None:
        answer = self._client().get_queue_attributes(
            QueueUrl=self._queue_url, AttributeNames=["RedrivePolicy"]
        )
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
        arn = policy.get("deadLetterTargetArn")
        return self._url(queue_name(arn), QueueOwnerAWSAccountId=arn.split(":")[4]) if arn else None

    def _url(self, name: str, **owner: str) -> str | None:
        try:
            return str(self._client().get_queue_url(QueueName=name, **owner)["QueueUrl"])
        except Exception as error:
            if no_such_queue(error):
                return None
            raise

    def _create(self, name: str) -> str:
        attributes = {"MessageRetentionPeriod": str(RETENTION_S_MAX)}
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        return str(self._client().create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])


@dataclass(slots=True, kw_only=True)
class _Held:
    """A letter that this process has taken, and will give back unless it is gone."""

    url: str
    raw: RawMessage
    letter: DeadLetter
    headers: Mapping[str, Any]
    body: str
    gone: bool = False


class SqsDeadLetters:
    """The dead letters of one SQS queue; see :class:`forwarder.brokers.dead_letters.DeadLetters`.

    SQS shows a message only to who takes it: while a call runs, and for
    ``HOLD_S`` if it is killed, the letters it has looked at are hidden from
    others. Of a FIFO queue no more than ten letters a group are seen at once.
    Letters of other queues in a shared redrive target are left alone.
    """

    def __init__(self, *, client: Callable[[], Client], queue: str, queue_url: str) -> None:
        self._client = client
        self._queue = queue
        self._queue_url = queue_url
        self._queues = DeadQueues(client=client, queue_url=queue_url)

    def list(self, limit: int) -> Sequence[DeadLetter]:
        """Return ``limit`` letters, of those the oldest first."""
        found: builtins.list[_Held] = []
        with closing(self._each()) as letters:
            found.extend(islice(letters, limit))
        found.sort(key=lambda held: int(held.raw["Attributes"].get("SentTimestamp", 0)))
        return [held.letter for held in found]

    def show(self, letter_id: str) -> OpenedLetter:
        """Return one letter with its message. Raises NoSuchLetter."""
        with closing(self._each()) as letters:
            for held in letters:
                if held.letter.id == letter_id:
                    return OpenedLetter(letter=held.letter, headers=held.headers, body=held.body)
        raise NoSuchLetter(letter_id)

    def requeue(
        self, ids: Collection[str] | None, before: Callable[[DeadLetter], None]
    ) -> Sequence[DeadLetter]:
        """Send letters (None: all) to the queue, counted anew; return those that went."""
        sent = []
        with closing(self._each()) as letters:
            for held in letters:
                if ids is None or held.letter.id in ids:
                    before(held.letter)
                    copy = copy_of(held.raw, self._queue_url, {DEATH_HEADER: None, DELIVERIES_HEADER: None})
                    self._client().send_message(QueueUrl=self._queue_url, **copy)
                    self._delete(held)
                    sent.append(held.letter)
        return sent

    def purge(self, ids: Collection[str] | None) -> Sequence[DeadLetter]:
        """Delete letters for good (None: all) and return them."""
        deleted = []
        with closing(self._each()) as letters:
            for held in letters:
                if ids is None or held.letter.id in ids:
                    self._delete(held)
                    deleted.append(held.letter)
        return deleted

    def close(self) -> None:
        """Close the connections."""
        self._client().close()

    def _each(self) -> Generator[_Held, None, None]:
        """Yield every letter of this queue, each once; give back what is not gone at the end."""
        for url in self._queues.found():
            seen: dict[str, _Held | None] = {}
            try:
                while fresh := [raw for raw in self._page(url) if raw["MessageId"] not in seen]:
                    for raw in fresh:
                        seen[raw["MessageId"]] = self._held(url, raw)
                    for raw in fresh:
                        if (held := seen[raw["MessageId"]]) is not None and self._is_ours(held):
                            yield held
            finally:
                self._give_back(url, [held for held in seen.values() if held and not held.gone])

    def _page(self, url: str) -> Sequence[RawMessage]:
        answer = self._client().receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=PAGE,
            WaitTimeSeconds=WAIT_S,
            VisibilityTimeout=HOLD_S,
            MessageSystemAttributeNames=["SentTimestamp", "MessageGroupId", "DeadLetterQueueSourceArn"],
            MessageAttributeNames=["All"],
        )
        messages: Sequence[RawMessage] = answer.get("Messages", [])
        return messages

    def _held(self, url: str, raw: RawMessage) -> _Held:
        headers, body = open_message(raw)
        letter = read_letter(headers, body, queue=self._queue)
        return _Held(url=url, raw=raw, letter=letter, headers=headers, body=body)

    def _is_ours(self, held: _Held) -> bool:
        source = held.raw["Attributes"].get("DeadLetterQueueSourceArn")
        if source is not None and queue_name(source) != queue_name(self._queue_url):
            return False
        return held.letter.queue == self._queue

    def _delete(self, held: _Held) -> None:
        self._client().delete_message(QueueUrl=held.url, ReceiptHandle=held.raw["ReceiptHandle"])
        held.gone = True

    def _give_back(self, url: str, held: Sequence[_Held]) -> None:
        for start in range(0, len(held), PAGE):
            entries = [
                {"Id": str(n), "ReceiptHandle": one.raw["ReceiptHandle"], "VisibilityTimeout": 0}
                for n, one in enumerate(held[start : start + PAGE])
            ]
            self._client().change_message_visibility_batch(QueueUrl=url, Entries=entries)
